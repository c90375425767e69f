// What workers held, by function, over time: areas one above the other, on the timeline's axis.

function makeMemory(memory, columns, model, view) {
  const figure = $('memory-chart');
  if (!figure) return;
  if (!memory.choices) { figure.hidden = true; return; }
  const canvas = $('memory-canvas'), height = 260, functions = memory.functions, readings = [];
  const list = $('memory-keys'), told = $('memory-told'), choose = $('memory-worker');
  const lines = {used: 'memory of its process', on_disk: 'on disk, at least', limit: 'limit'};
  for (const choice of memory.choices) {
    const option = made('option', choice.name);
    option.value = choice.process;
    choose.append(option);
  }
  functions.forEach((one, i) => readings.push(entry(one.name, `f${one.colour}${pattern(i)}`)));
  const lineReadings = Object.fromEntries(Object.entries(lines).map(([name, text]) => [name, entry(text, `line-${name}`)]));
  let chosen = null, at = -1, left = 62, width = 0;
  const decoded = new Map();

  function entry(text, style) {
    const item = made('li'), name = made('span', text), reading = made('span', '', 'reading');
    item.append(made('span', '', `key ${style}`), name, reading);
    list.append(item);
    return {item, text: name, reading};
  }

  // Of functions with one colour the second one and those after it have lines across.
  function pattern(i) {
    const before = functions.slice(0, i).filter(other => other.colour === functions[i].colour).length;
    return before ? ` p${Math.min(before, 3)}` : '';
  }

  function read(choice) {
    if (decoded.has(choice)) return decoded.get(choice);
    const sizes = number => number < 0 ? null : Array.from(numbers(columns[number]), size);
    const after = numbers(columns[choice.time]), all = sizes(choice.held), count = after.length;
    const one = {
      ...choice, count, moment: Array.from(after, (us, i) => choice.begin + i * choice.each + us),
      held: functions.map((_, f) => all.slice(f * count, (f + 1) * count)),
      used: sizes(choice.used), on_disk: sizes(choice.on_disk),
    };
    one.total = one.moment.map((_, i) => one.held.reduce((sum, own) => sum + own[i], 0));
    one.most = Math.max(...one.total);
    decoded.set(choice, one);
    return one;
  }

  function pick(process) {
    chosen = read(memory.choices.find(choice => choice.process === process) || memory.choices[0]);
    choose.value = chosen.process;
    at = -1;
    lineReadings.used.text.textContent = chosen.process < 0 ? 'memory of their processes' : lines.used;
    readings.forEach(({item}, f) => { item.hidden = !chosen.held[f].some(v => v > 0); });
    lineReadings.used.item.hidden = !chosen.used || !chosen.used.some(v => v > 0);
    lineReadings.on_disk.item.hidden = !chosen.on_disk || !chosen.on_disk.some(v => v > 0);
    lineReadings.limit.item.hidden = chosen.limit < 0;
    const peak = chosen.total.indexOf(Math.max(...chosen.total));
    canvas.setAttribute('aria-label', `Results in memory on ${chosen.name}: at most ${amount(chosen.total[peak], 'bytes')} at ${moment(chosen.moment[peak], 1000)}`);
    draw();
    tell();
  }

  function tell() {
    readings.forEach(({reading}, f) => { reading.textContent = at < 0 ? '' : ` ${amount(chosen.held[f][at], 'bytes')}`; });
    for (const name of ['used', 'on_disk'])
      lineReadings[name].reading.textContent = at < 0 || !chosen[name] || chosen[name][at] < 0 ? '' : ` ${amount(chosen[name][at], 'bytes')}`;
    lineReadings.limit.reading.textContent = chosen.limit < 0 ? '' : ` ${amount(chosen.limit, 'bytes')}`;
    const i = at < 0 ? chosen.total.indexOf(Math.max(...chosen.total)) : at;
    const text = `${amount(chosen.total[i], 'bytes')} in results at ${moment(chosen.moment[i], 1000)}`;
    told.textContent = at < 0 ? `At most ${text}.` : `${text}.`;
  }

  function draw() {
    width = canvas.clientWidth;
    const bottom = height - 20, c = colours(), pen = prepared(canvas, width, height);
    // what is far above the results would leave them no room
    const fits = value => value > 0 && value < chosen.most * 4 ? value : 0;
    const top = Math.max(1, chosen.most, fits(chosen.used ? Math.max(...chosen.used) : 0), fits(chosen.limit)) * 1.03;
    const step = niceStep(top, 4);
    const marks = [...Array(Math.floor(top / step) + 1).keys()].map(i => i * step);
    left = Math.max(62, ...marks.map(v => pen.measureText(amount(v, 'bytes')).width + 10));
    const x = us => left + (us - view.from) / (view.to - view.from) * (width - left - 6);
    const y = value => bottom - value / top * (bottom - 8);
    const from = i => x(chosen.begin + i * chosen.each);
    drawAxes(pen, view, {left, width, height, bottom, marks, unit: 'bytes', x, y});
    const below = new Array(chosen.count).fill(0);
    functions.forEach((one, f) => {
      const own = chosen.held[f];
      if (!own.some(v => v > 0)) return;
      pen.beginPath();
      for (let i = 0; i < chosen.count; i++) {
        pen.lineTo(from(i), y(below[i] + own[i]));
        pen.lineTo(from(i + 1), y(below[i] + own[i]));
      }
      for (let i = chosen.count - 1; i >= 0; i--) {
        pen.lineTo(from(i + 1), y(below[i]));
        pen.lineTo(from(i), y(below[i]));
      }
      pen.closePath();
      pen.fillStyle = c.of[one.colour];
      pen.fill();
      const lines = pattern(f);
      if (lines) {
        pen.save();
        pen.clip();
        pen.strokeStyle = 'rgba(0, 0, 0, .45)';
        const apart = 4 + 3 * Number(lines[2]);
        for (let px = left - height; px < width + height; px += apart) {
          pen.beginPath();
          pen.moveTo(px, bottom);
          pen.lineTo(px + (lines[2] === '2' ? -height : height), bottom - height);
          pen.stroke();
        }
        pen.restore();
      }
      for (let i = 0; i < chosen.count; i++) below[i] += own[i];
    });
    const along = (values, style, dash, wide) => {
      pen.strokeStyle = style;
      pen.lineWidth = wide;
      pen.setLineDash(dash);
      pen.beginPath();
      let down = false;
      values.forEach((value, i) => {
        if (value <= 0) { down = false; return; }
        if (down) pen.lineTo(from(i), y(value)); else pen.moveTo(from(i), y(value));
        pen.lineTo(from(i + 1), y(value));
        down = true;
      });
      pen.stroke();
      pen.setLineDash([]);
    };
    if (chosen.used) along(chosen.used, c.ink, [6, 3], 1.6);
    if (chosen.on_disk && chosen.on_disk.some(v => v > 0)) along(chosen.on_disk, c.ink, [2, 2], 1.6);
    if (chosen.limit > 0 && chosen.limit <= top) along(new Array(chosen.count).fill(chosen.limit), c.serious, [], 1.6);
    if (at >= 0) {
      pen.strokeStyle = c.focus;
      pen.lineWidth = 1.5;
      pen.strokeRect(from(at) + 0.5, 4, Math.max(1, from(at + 1) - from(at) - 1), bottom - 4);
    }
    pen.restore();
  }

  function look(i) {
    if (i === at) return;
    at = i;
    draw();
    tell();
  }

  canvas.addEventListener('pointermove', event => {
    const px = event.clientX - canvas.getBoundingClientRect().left;
    const us = view.from + (px - left) / (width - left - 6) * (view.to - view.from);
    const i = Math.floor((us - chosen.begin) / chosen.each);
    look(px < left || i < 0 || i >= chosen.count ? -1 : i);
  });
  canvas.addEventListener('pointerleave', () => { if (document.activeElement !== canvas) look(-1); });
  canvas.addEventListener('focus', () => { if (at < 0) look(chosen.total.indexOf(Math.max(...chosen.total))); });
  canvas.addEventListener('blur', () => look(-1));
  canvas.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -chosen.count, End: chosen.count}[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    look(Math.min(chosen.count - 1, Math.max(0, at + step)));
  });
  choose.addEventListener('change', () => pick(Number(choose.value)));
  redraws.push(() => draw());
  pick(-1);
  canvas.memory = {get chosen() { return chosen; }, functions}; // for tests, and for the console
}
