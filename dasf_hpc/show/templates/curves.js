// Curves over time, on the timeline's axis.

// Draws the lines of a chart and what stands at them; what is drawn then is cut at its edges.
function drawAxes(pen, view, {left, width, height, bottom, marks, unit, x, y}) {
  const c = colours();
  pen.fillStyle = c.paper;
  pen.fillRect(0, 0, width, height);
  pen.strokeStyle = c.line;
  pen.fillStyle = c.faint;
  pen.lineWidth = 1;
  pen.textAlign = 'right';
  for (const v of marks) {
    pen.beginPath();
    pen.moveTo(left, Math.round(y(v)) + 0.5);
    pen.lineTo(width, Math.round(y(v)) + 0.5);
    pen.stroke();
    pen.fillText(amount(v, unit), left - 6, y(v));
  }
  pen.textAlign = 'center';
  const ticks = axisStep(pen, view, width - left, 80);
  let before = 0;
  for (let t = Math.ceil(view.from / ticks) * ticks; t <= view.to; t += ticks) {
    const text = moment(t, ticks), half = pen.measureText(text).width / 2;
    const middle = Math.min(Math.max(x(t), left - 20 + half), width - half - 2);
    if (middle - half < before + 8) continue;
    pen.fillText(text, middle, height - 8);
    before = middle + half;
  }
  pen.save();
  pen.beginPath();
  pen.rect(left, 0, width - left, bottom + 2);
  pen.clip();
}

function makeCurves(charts, model, view) {
  if (!charts.length) {
    if ($('curves')) $('curves').hidden = true;
    return;
  }
  const dashes = [[], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3]], height = 150;
  const length = model.end - model.begin, waiting = new Set();
  // what is not on the screen is drawn at first, and then when it comes there or all stands still
  const seen = new IntersectionObserver(entries => entries.forEach(entry => {
    entry.target.seen = entry.isIntersecting;
    if (entry.isIntersecting && waiting.delete(entry.target)) entry.target.draw();
  }));
  let later = 0;
  const rest = () => {
    waiting.forEach(one => one.draw());
    waiting.clear();
  };
  for (const chart of charts) {
    const figure = made('figure'), caption = made('figcaption', chart.title), canvas = made('canvas');
    const readings = chart.curves.map((curve, i) => {
      const name = made('span', '', 'name'), reading = made('span');
      name.append(made('span', '', `key c${i}`), plain(curve.name), reading);
      caption.append(name);
      return reading;
    });
    const values = chart.curves.flatMap(c => c.values).concat(chart.band ? chart.band[1] : [])
      .filter(v => v !== null);
    const most = values.reduce((a, b) => Math.max(a, b), 0);
    const top = chart.unit === '%' ? Math.max(100, most) : Math.max(1e-9, chart.top || 0, most);
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `${chart.title}: at most ${amount(most, chart.unit)}`);
    figure.append(caption, canvas);
    $('charts').append(figure);
    let width = 0, left = 62;
    canvas.draw = () => {
      width = canvas.clientWidth;
      const bottom = height - 20, c = colours(), pen = prepared(canvas, width, height), step = niceStep(top, 4);
      const marks = [...Array(Math.floor(top * 1.001 / step) + 1).keys()].map(i => i * step);
      left = Math.max(62, ...marks.map(v => pen.measureText(amount(v, chart.unit)).width + 10));
      const x = us => left + (us - view.from) / (view.to - view.from) * (width - left - 6);
      const y = value => bottom - value / top * (bottom - 8);
      drawAxes(pen, view, {left, width, height, bottom, marks, unit: chart.unit, x, y});
      const middle = (i, parts) => x(model.begin + (i + 0.5) / parts * length);
      if (chart.band) {
        const [least, largest] = chart.band;
        const known = largest.map((v, i) => i).filter(i => largest[i] !== null);
        pen.beginPath();
        known.forEach(i => pen.lineTo(middle(i, largest.length), y(largest[i])));
        known.reverse().forEach(i => pen.lineTo(middle(i, least.length), y(least[i])));
        pen.closePath();
        pen.globalAlpha = 0.25;
        pen.fillStyle = c.curve[0];
        pen.fill();
        pen.globalAlpha = 1;
      }
      chart.curves.forEach((curve, k) => {
        pen.strokeStyle = c.curve[k];
        pen.lineWidth = 1.8;
        pen.setLineDash(dashes[k]);
        pen.beginPath();
        let down = false;
        curve.values.forEach((value, i) => {
          if (value === null) { down = false; return; }
          const px = middle(i, curve.values.length);
          if (down) pen.lineTo(px, y(value)); else { pen.moveTo(px, y(value)); pen.lineTo(px + 0.1, y(value)); }
          down = true;
        });
        pen.stroke();
      });
      pen.restore();
      pen.setLineDash([]);
    };
    canvas.addEventListener('pointermove', event => {
      const px = event.clientX - canvas.getBoundingClientRect().left;
      const at = view.from + (px - left) / (width - left - 6) * (view.to - view.from);
      const part = (at - model.begin) / length;
      chart.curves.forEach((curve, i) => {
        readings[i].textContent = part < 0 || part >= 1 ? ''
          : ` ${amount(curve.values[Math.floor(part * curve.values.length)], chart.unit)}`;
      });
    });
    canvas.addEventListener('pointerleave', () => readings.forEach(r => { r.textContent = ''; }));
    seen.observe(canvas);
    redraws.push(() => {
      if (canvas.seen || printing) { canvas.draw(); return; }
      waiting.add(canvas);
      clearTimeout(later);
      later = setTimeout(rest, 300);
    });
    canvas.draw();
  }
}
