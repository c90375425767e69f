// The timeline: its rows, which of what it holds is shown bright, and how it is drawn.

const AXIS = 24, GAP = 4, MARK = 3, LINE = 13, LINES = 16;
const MARKS = ['transfer', 'disk', 'deserialising'];

class Timeline {
  constructor(model, view) {
    Object.assign(this, {model, view, picked: -1, current: -1, drag: null, mark: null, about: null, ranks: model.functions});
    this.canvas = $('chart');
    this.frame = $('lanes');
    this.filter = {fn: -1, others: false, text: '', errors: false};
    this.kinds = MARKS.filter(kind => model.tracks.some(track => track.kind === kind));
    this.spans = new Spans(model.tasks.start, model.tasks.stop, new Uint8Array(model.tasks.count));
    if (!model.tasks.count) this.rankKernels();
    this.makeRows();
    this.applyFilter();
    this.layOut();
  }

  // Where there are no tasks, colours are those of the kernels that take longest.
  rankKernels() {
    const {model} = this, spent = new Float64Array(model.names.length);
    for (const track of model.tracks)
      for (let i = 0; track.kind === 'stream' && i < track.count; i++)
        if (!track.sort[i]) spent[track.name[i]] += track.stop[i] - track.start[i];
    const order = [...spent.keys()].filter(i => spent[i] > 0).sort((a, b) => spent[b] - spent[a]);
    this.ranks = order.map(i => model.names[i]);
    this.rankOf = new Map(order.map((name, rank) => [name, rank]));
  }

  makeRows() {
    const {model} = this, path = model.path;
    const ranks = new Map(model.functions.map((name, rank) => [name, rank]));
    this.pathRanks = path && path.function ? path.function.map(name => ranks.get(name) ?? -1) : [];
    this.rows = path && path.start && path.start.length
      ? [{name: 'critical path', kind: 'path', own: [], tracks: []}, ...model.rows] : [...model.rows];
    const streams = model.tracks.filter(track => track.kind === 'stream').length;
    for (const row of this.rows) {
      row.streams = row.tracks.filter(track => track.kind === 'stream');
      row.ranges = row.tracks.filter(track => track.kind === 'range');
      row.lines = [];
      for (const track of [...row.streams, ...row.ranges]) row.lines.push(...this.linesOf(track));
      row.marks = MARKS.map(kind => row.tracks.find(track => track.kind === kind));
      for (const mark of row.marks) if (mark) mark.united = united(mark.start, mark.stop);
      row.open = row.kind === 'ranges' || (!model.tasks.count && row.streams.length > 0 && streams <= 24);
      if (row.streams.length) this.unite(row);
    }
    this.rowOf = new Map(this.rows.map((row, place) => [row.number === undefined ? 'path' : row.number, place]));
  }

  // Gives the lines of a track: spans that overlap stand in lines of their own, sixteen at most.
  linesOf(track) {
    const [lane, needed, left] = stacked(track.start, track.stop, LINES);
    return [...Array(needed).keys()].map(line => {
      const own = needed === 1 ? Uint32Array.from(lane.keys()) : Uint32Array.from([...lane.keys()].filter(i => lane[i] === line));
      const spans = new Spans(
        needed === 1 ? track.start : Float64Array.from(own, i => track.start[i]),
        needed === 1 ? track.stop : Float64Array.from(own, i => track.stop[i]), new Uint8Array(own.length));
      return {track, own, spans, label: line ? left && line === LINES - 1 ? `${count(left)} more` : '' : track.label};
    });
  }

  // A GPU is busy while any of its streams is: with kernels, and with anything.
  unite(row) {
    const all = [];
    for (const track of row.streams)
      for (let i = 0; i < track.count; i++) all.push([track.start[i], track.stop[i], track.sort[i]]);
    all.sort((a, b) => a[0] - b[0]);
    const kernels = all.filter(one => one[2] === 0);
    row.busy = [kernels, all].map(some => united(some.map(one => one[0]), some.map(one => one[1])));
  }

  // ------------------------------------------------------------------------------ filter

  get filtered() {
    return this.filter.fn >= 0 || this.filter.others || this.filter.text !== '' || this.filter.errors;
  }

  // Says what is bright, what pale; counts what is found.
  applyFilter() {
    const {model, filter} = this, {tasks} = model, planes = new Uint8Array(tasks.count);
    const text = filter.text.toLowerCase();
    const named = this.ranks.map(name => !text || name.toLowerCase().includes(text));
    const ofFunction = fn => filter.others ? fn >= COLOURED : filter.fn < 0 || fn === filter.fn;
    const keys = text ? tasks.keys : null, exact = new Set();
    const same = this.ranks.map(name => text !== '' && name.toLowerCase() === text);
    let found = 0;
    this.matches = this.filtered ? new Uint8Array(tasks.count) : null;
    for (let i = 0; i < tasks.count; i++) {
      const fn = tasks.fn[i];
      let plane = fn < COLOURED ? fn : COLOURED;
      if (this.matches) {
        const good = ofFunction(fn) && (named[fn] || (keys !== null && keys[i].toLowerCase().includes(text)))
          && (!filter.errors || tasks.bad.has(i));
        if (good) {
          found++;
          this.matches[i] = 1;
          if (keys !== null && keys[i].toLowerCase() === text) exact.add(i);
        } else plane += SHADES;
      }
      planes[i] = plane;
    }
    this.spans.setPlanes(planes);
    this.foundOnTracks = 0;
    for (const row of this.rows)
      for (const line of row.lines) line.spans.setPlanes(line.own.map(i => this.planeOn(line.track, i, text, ofFunction)));
    this.found = found;
    // what is called so exactly comes before what has it in its name
    this.exactKey = exact.size > 0;
    this.exactly = this.exactKey ? i => exact.has(i) : i => same[tasks.fn[i]];
    this.exact = text && found ? this.matches.reduce((sum, good, i) => sum + (good && this.exactly(i) ? 1 : 0), 0) : 0;
    this.order = null;
    this.few = [];
    if (this.matches && found <= 3000) this.matches.forEach((good, i) => { if (good) this.few.push(i); });
  }

  planeOn(track, i, text, ofFunction) {
    const page = track.page ? track.page[i] : -1, sort = track.sort ? track.sort[i] : 0;
    const rank = page >= 0 ? this.model.tasks.fn[page] : this.rankOf ? this.rankOf.get(track.name[i]) ?? COLOURED : COLOURED;
    const plane = track.kind === 'range' ? COLOURED : sort === 1 ? COPY : sort === 2 ? FILL : Math.min(rank, COLOURED);
    if (!this.filtered) return plane;
    const own = text !== '' && this.model.names[track.name[i]].toLowerCase().includes(text);
    if (own) this.foundOnTracks++;
    const good = page >= 0 && this.matches[page] || !this.filter.errors && ofFunction(rank) && (own || page < 0 && !text);
    return good ? plane : plane + SHADES;
  }

  // ------------------------------------------------------------------------------ layout

  layOut() {
    const lanes = this.rows.reduce((sum, row) => sum + Math.max(1, row.own.length), 0);
    const tall = lanes <= 12 ? 24 : lanes <= 30 ? 18 : lanes <= 80 ? 14 : lanes <= 300 ? 8 : 5;
    let y = AXIS;
    for (const row of this.rows) {
      row.y = y;
      row.body = row.kind === 'ranges' ? 0 : row.kind === 'gpu' ? 22 : row.kind === 'path' ? 14
        : Math.max(14, row.own.length * tall);
      row.lane = row.body / Math.max(1, row.own.length);
      row.strip = row.kind === 'worker' && this.kinds.length ? this.kinds.length * MARK + 1 : 0;
      row.below = row.open ? row.lines.length * LINE : 0;
      row.height = row.body + row.strip + row.below;
      y += row.height + GAP;
    }
    this.total = y + 2;
    $('room').style.height = `${this.total}px`;
  }

  x(us) { return this.gutter + (us - this.view.from) / (this.view.to - this.view.from) * (this.width - this.gutter); }
  us(px) { return this.view.from + (px - this.gutter) / (this.width - this.gutter) * (this.view.to - this.view.from); }

  measure() {
    const {frame, canvas} = this;
    this.width = frame.clientWidth;
    this.height = printing ? Math.min(this.total, 6000) : Math.max(AXIS + 20, Math.min(this.total, frame.clientHeight || 400));
    this.top = printing ? 0 : frame.scrollTop;
    this.ratio = devicePixelRatio || 1;
    this.pen = prepared(canvas, this.width, this.height);
    this.phone = this.width < 500;
    const widest = Math.max(50, ...this.rows.slice(0, 200).map(row => this.pen.measureText(this.nameOf(row)).width));
    this.gutter = Math.round(Math.min(this.width * (this.phone ? 0.22 : 0.25), 26 + widest));
    this.columns = Math.max(1, Math.round((this.width - this.gutter) * this.ratio));
    const high = Math.round(this.height * this.ratio);
    if (!this.pixels || this.pixels.width !== this.columns || this.pixels.height !== high) {
      this.pixels = new Pixels(this.columns, high);
      this.filled = new Float32Array(PLANES * this.columns);
      this.more = new Float32Array(PLANES * this.columns);
    }
  }

  // On a phone the node gives way, which stands with each of its workers.
  nameOf(row) {
    if (row.kind === 'path') return this.phone ? 'path' : row.name;
    return this.phone ? row.name.slice(row.name.indexOf(' ') + 1) : row.name;
  }

  // ------------------------------------------------------------------------------ drawing

  draw() {
    this.measure();
    const c = colours(), {pixels, view, top, ratio} = this;
    if (this.shadesOf !== c) this.makeShades(c);
    const px = y => Math.round((y - top) * ratio);
    pixels.words.fill(this.ground.paper);
    const step = axisStep(this.pen, view, this.width - this.gutter, 110);
    const ticks = [];
    for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) ticks.push(t);
    for (const t of ticks) {
      const at = Math.round((this.x(t) - this.gutter) * ratio);
      pixels.rectangle(at, px(top + AXIS - 6), at + 1, pixels.height, this.ground.line);
    }
    const shown = this.rows.filter(row => row.y + row.height > top + AXIS - 8 && row.y < top + this.height);
    for (const row of shown) this.drawRow(row, px);
    this.pen.setTransform(1, 0, 0, 1, 0, 0);
    this.pen.putImageData(pixels.image, Math.round(this.gutter * ratio), 0);
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawOver(c, shown);
    this.drawNames(c, shown);
    this.drawAxis(c, ticks, step);
  }

  makeShades(c) {
    this.shadesOf = c;
    this.ground = {paper: word(c.paper), idle: word(c.idle), line: word(c.line)};
    const bright = [...c.of, c.ink, c.faint].map(word);
    this.shades = [...bright, ...bright.map(one => mixed(this.ground.idle, one, 0.18))];
    this.markShades = c.marks.map(word);
  }

  // Gives what the lanes of a row fill, each, or all in one.
  drawRow(row, px) {
    const {pixels, columns, view, filled, ground} = this, bottom = px(row.y + row.body);
    if (row.body) pixels.rectangle(0, px(row.y), columns, bottom, ground.idle);
    if (row.kind === 'path') return;
    if (row.kind === 'gpu') this.drawGpu(row, px(row.y), bottom);
    else if (row.binned) {
      filled.fill(0);
      fillFromBins(filled, columns, row.binned, this.model.bins, SHADES - 2, this.model.begin, this.model.end, view.from, view.to);
      if (this.filtered) this.paleBins();
      pixels.stack(filled, columns, this.shades, ground.idle, 0, px(row.y), bottom);
      row.stacked = true;
    } else if (row.own.length) {
      const seen = row.own.map(lane => this.spans.visible(lane.from, lane.to, view.from, view.to));
      const many = seen.reduce((sum, [first, last]) => sum + last - first, 0);
      row.stacked = row.own.length > 1 && many > columns * row.own.length / 6;
      row.seen = seen;
      if (row.stacked) filled.fill(0);
      row.own.forEach((lane, number) => {
        const [first, last] = seen[number];
        if (!row.stacked) filled.fill(0);
        if (last > first) this.spans.fill(filled, columns, first, last, view.from, view.to);
        if (row.stacked || last <= first) return;
        const y = px(row.y + number * row.lane), end = px(row.y + (number + 1) * row.lane);
        pixels.stack(filled, columns, this.shades, ground.idle, 0, y, end - (row.own.length > 1 && row.lane > 6 ? 1 : 0));
      });
      if (row.stacked) pixels.stack(filled, columns, this.shades, ground.idle, 0, px(row.y), bottom, 1 / row.own.length);
    }
    this.kinds.forEach((kind, place) => {
      const mark = row.marks[MARKS.indexOf(kind)];
      if (!mark) return;
      const y = row.y + row.body + 1 + place * MARK;
      this.drawMarks(mark.united, this.markShades[MARKS.indexOf(kind)], px(y), px(y + MARK));
    });
    if (row.open) row.lines.forEach((line, place) => this.drawLine(line, px(row.y + row.body + row.strip + place * LINE + 1), px(row.y + row.body + row.strip + (place + 1) * LINE)));
  }

  paleBins() {
    const {filled, columns, filter} = this;
    for (let p = 0; p <= COLOURED; p++)
      if (filter.text || filter.errors || p !== (filter.others ? COLOURED : Math.min(filter.fn, COLOURED))) {
        filled.copyWithin((p + SHADES) * columns, p * columns, (p + 1) * columns);
        filled.fill(0, p * columns, (p + 1) * columns);
      }
  }

  drawMarks(spans, colour, top, bottom) {
    const {columns, filled, view, pixels, ground} = this;
    const [first, last] = spans.visible(0, spans.start.length, view.from, view.to);
    if (last <= first) return;
    filled.fill(0, 0, columns);
    spans.fill(filled, columns, first, last, view.from, view.to);
    for (let c = 0; c < columns; c++)
      if (filled[c] > 0) pixels.rectangle(c, top, c + 1, bottom, mixed(ground.paper, colour, Math.min(1, filled[c])));
  }

  drawLine(line, top, bottom) {
    const {columns, filled, view, pixels, ground, spans} = this;
    pixels.rectangle(0, top, columns, bottom, ground.idle);
    const [first, last] = line.spans.visible(0, line.own.length, view.from, view.to);
    line.seen = [first, last];
    if (last <= first) return;
    filled.fill(0);
    line.spans.fill(filled, columns, first, last, view.from, view.to);
    pixels.stack(filled, columns, this.shades, ground.idle, 0, top, bottom);
  }

  // Kernels from the bottom on, above them the time in which only copies and fills ran.
  drawGpu(row, top, bottom) {
    const {columns, filled, view, pixels, ground, model} = this;
    filled.fill(0);
    if (row.binned) fillFromBins(filled, columns, row.binned, row.gpu_bins, 2, model.begin, model.end, view.from, view.to);
    else if (row.busy) {
      row.busy.forEach((spans, p) => {
        const [first, last] = spans.visible(0, spans.start.length, view.from, view.to);
        this.more.fill(0, 0, columns);
        if (last > first) spans.fill(this.more, columns, first, last, view.from, view.to);
        for (let c = 0; c < columns; c++) filled[p * columns + c] = Math.max(0, this.more[c] - (p ? filled[c] : 0));
      });
    } else if (row.sampled) {
      const bins = Float32Array.from(row.sampled, letter => SHARE[letter] || 0);
      fillFromBins(filled, columns, bins, bins.length, 1, model.begin, model.end, view.from, view.to);
    }
    pixels.stack(filled, columns, [this.shades[FILL], this.shades[COPY]], ground.idle, 0, top, bottom);
  }

  // What stands over the pixels: edges and names of what is wide, failures, what is picked.
  drawOver(c, shown) {
    const {pen, model, view, top} = this;
    pen.save();
    pen.beginPath();
    pen.rect(this.gutter, AXIS - 6, this.width - this.gutter, this.height);
    pen.clip();
    for (const row of shown) {
      if (row.kind === 'path') this.drawPath(c, row);
      if (row.own.length && !row.stacked) row.own.forEach((lane, number) =>
        this.edges(c, row.seen[number], model.tasks.start, model.tasks.stop, row.y - top + number * row.lane, row.lane,
          i => [Math.min(model.tasks.fn[i], COLOURED), model.functions[model.tasks.fn[i]]]));
      if (row.binned && row.own.length) this.longest(c, row);
      if (row.open) row.lines.forEach((line, place) => line.seen && this.edges(c, line.seen, line.spans.start, line.spans.stop,
        row.y - top + row.body + row.strip + place * LINE + 1, LINE - 1, i => [line.spans.planes[i] % SHADES, model.names[line.track.name[line.own[i]]]]));
    }
    this.ticks(c, shown);
    this.shadeOutside(c);
    if (this.mark) this.drawMark(c);
    if (this.picked >= 0) this.drawPicked(c);
    if (this.drag && this.drag.select) {
      const {from, to} = this.drag;
      pen.fillStyle = c.focus;
      pen.globalAlpha = 0.25;
      pen.fillRect(Math.min(from, to), 0, Math.abs(to - from), this.height);
      pen.globalAlpha = 1;
    }
    pen.restore();
  }

  edges(c, [first, last], start, stop, y, high, told) {
    const {pen, columns} = this;
    if (last - first > columns / 2 || y > this.height || y + high < 0) return;
    for (let i = first; i < last; i++) {
      const left = this.x(start[i]), right = this.x(stop[i]);
      if (right - left < 4) continue;
      pen.fillStyle = 'rgba(0, 0, 0, 0.35)';
      if (left >= this.gutter) pen.fillRect(Math.round(left * this.ratio) / this.ratio, y, 1 / this.ratio, high - 1);
      if (right - left < 40 || high < 11) continue;
      const [colour, name] = told(i), from = Math.max(left, this.gutter) + 4;
      pen.fillStyle = colour >= COPY ? c.paper : colour === 4 ? '#fff' : '#000';
      fitted(pen, name, from, y + high / 2, Math.min(right, this.width) - from - 3);
    }
  }

  longest(c, row) {
    const {pen, model, view, top} = this;
    row.own.forEach((lane, number) => {
      const [first, last] = this.spans.visible(lane.from, lane.to, view.from, view.to);
      for (let i = first; i < last; i++) {
        const left = this.x(model.tasks.start[i]), wide = this.x(model.tasks.stop[i]) - left;
        if (wide < 3) continue;
        pen.strokeStyle = c.ink;
        pen.lineWidth = 1;
        pen.strokeRect(left + 0.5, row.y - top + number * row.lane + 0.5, wide - 1, row.lane - 2);
      }
    });
  }

  drawPath(c, row) {
    const {pen, model, view, top} = this, y = row.y - top;
    model.path.start.forEach((begin, i) => {
      const end = begin + model.path.took[i];
      if (end < view.from || begin > view.to) return;
      const left = Math.max(this.gutter, this.x(begin)), right = Math.min(this.width, this.x(end));
      const f = this.pathRanks[i], task = f >= 0 && model.path.kind[i] === 'task';
      pen.fillStyle = task ? c.of[Math.min(f, COLOURED)] : c.faint;
      pen.globalAlpha = !task ? 0.5 : this.filter.fn < 0 || f === this.filter.fn ? 1 : 0.2;
      pen.fillRect(left, task ? y : y + row.body * 0.35, right - left, task ? row.body : row.body * 0.3);
    });
    pen.globalAlpha = 1;
  }

  // Failures, and what is found, stand as signs above the row: signs say where, not how long.
  ticks(c, shown) {
    const {pen} = this, found = this.filter.text ? this.few : [], {bad} = this.model.tasks;
    for (const [tasks, colour] of [[found, c.ink], [this.model.tasks.failed, c.serious]]) {
      if (!tasks.length) continue;
      pen.fillStyle = pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.beginPath();
      for (const row of shown) for (const lane of row.own)
        this.signs(row, lane, tasks, i => colour === c.serious || !bad.has(i));
      pen.fill();
    }
  }

  // Adds a sign for each task of a lane that is shown, one for all that stand at one pixel.
  signs(row, lane, tasks, good) {
    const {pen, model, view} = this, {start, stop} = model.tasks;
    const y = row.y - this.top + (row.stacked ? 0 : lane.lane * row.lane);
    let before = -9;
    for (let k = firstFrom(tasks, 0, tasks.length, lane.from); k < tasks.length && tasks[k] < lane.to; k++) {
      const i = tasks[k];
      if (stop[i] < view.from || start[i] > view.to || !good(i)) continue;
      const left = this.x(start[i]), wide = this.x(stop[i]) - left, at = left + wide / 2;
      if (at - before >= 2) {
        pen.moveTo(at - 3.5, y - 3);
        pen.lineTo(at + 3.5, y - 3);
        pen.lineTo(at, y + 2.5);
        before = at;
      }
      if (wide < 4 || row.stacked) continue;
      pen.setLineDash([4, 2]);
      pen.strokeRect(left + 1, y + 1, wide - 2, row.lane - 3);
      pen.setLineDash([]);
    }
  }

  // Before the first task and after the last one.
  shadeOutside(c) {
    const {pen, model} = this;
    for (const [from, to, name] of [[model.begin, 0, 'start-up'], [model.work, model.end, 'writing reports']]) {
      const left = Math.max(this.gutter, this.x(from)), right = Math.min(this.width, this.x(to));
      if (right - left < 1) continue;
      pen.fillStyle = c.faint;
      pen.globalAlpha = 0.22;
      pen.fillRect(left, AXIS - 6, right - left, this.height);
      pen.globalAlpha = 1;
      pen.fillStyle = c.ink;
      if (right - left > 50 && model.tasks.count) fitted(pen, name, left + 6, AXIS + 8, right - left - 8);
    }
  }

  // The stretch of time that a finding is about.
  drawMark(c) {
    const {pen, view} = this, [from, to] = this.mark;
    if (to < view.from || from > view.to) return;
    const left = Math.max(this.gutter, this.x(from)), right = Math.max(left + 1, Math.min(this.width, this.x(to)));
    pen.fillStyle = pen.strokeStyle = c.focus;
    pen.globalAlpha = 0.16;
    pen.fillRect(left, 0, right - left, this.height);
    pen.globalAlpha = 1;
    pen.lineWidth = 1.5;
    for (const edge of [from, to])
      if (edge >= view.from && edge <= view.to) {
        pen.beginPath();
        pen.moveTo(this.x(edge), 0);
        pen.lineTo(this.x(edge), this.height);
        pen.stroke();
      }
    const step = (view.to - view.from) / 1000, long = `${moment(from, step)} to ${moment(to, step)}`; // which is no time that could be saved
    const text = this.about ? `${this.about.name}: ${long}` : long;
    const wide = Math.min(pen.measureText(plain(text)).width + 8, this.width - this.gutter);
    const place = Math.max(this.gutter, Math.min(left + 2, this.width - wide)), y = this.height - 20;
    pen.fillStyle = c.paper;
    pen.fillRect(place, y, wide, 18);
    pen.strokeRect(place, y, wide, 18);
    pen.fillStyle = c.ink;
    fitted(pen, text, place + 4, y + 9.5, wide - 6);
  }

  drawNames(c, shown) {
    const {pen, top} = this;
    pen.fillStyle = c.paper;
    pen.fillRect(0, 0, this.gutter, this.height);
    for (const row of shown) {
      const y = row.y - top, place = this.rows.indexOf(row);
      if (place === this.current) {
        pen.fillStyle = c.focus;
        pen.globalAlpha = 0.25;
        pen.fillRect(0, y - 2, this.gutter - 3, row.height + 4);
        pen.globalAlpha = 1;
      }
      pen.fillStyle = c.ink;
      const opens = row.lines.length > 0 && row.kind !== 'ranges';
      const middle = y + (row.body ? Math.max(7, row.body / 2) : LINE / 2);
      if (opens) pen.fillText(row.open ? '▾' : '▸', 6, middle);
      const left = opens || this.phone ? 18 : 8;
      fitted(pen, this.nameOf(row), this.phone && !opens ? 6 : left, middle, this.gutter - left - 4);
      pen.fillStyle = c.faint;
      pen.textAlign = 'right';
      if (row.open && row.body) row.lines.forEach((line, k) => line.label
        && fitted(pen, line.label.slice(0, 24), this.gutter - 6, y + row.body + row.strip + (k + 0.5) * LINE, this.gutter - 24));
      pen.textAlign = 'left';
    }
  }

  drawAxis(c, ticks, step) {
    const {pen} = this;
    pen.fillStyle = c.paper;
    pen.fillRect(0, 0, this.width, AXIS - 6);
    pen.fillStyle = c.faint;
    let before = -9;
    for (const t of ticks) {
      const text = moment(t, step), room = pen.measureText(text).width;
      const left = Math.max(this.gutter - 10, Math.min(this.x(t) - room / 2, this.width - room - 2));
      if (left < before + 8) continue; // at the edges a label stands beside its place
      pen.fillText(text, left, 9);
      before = left + room;
    }
  }

  // ------------------------------------------------------------------------------ where tasks are

  laneOf(i) {
    const {lanes} = this.model;
    let low = 0, high = lanes.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lanes[middle].to > i) high = middle; else low = middle + 1;
    }
    return lanes[low];
  }

  // Its row, and the top of its lane in the whole picture.
  placeOf(i) {
    const lane = this.laneOf(i), row = this.rows[this.rowOf.get(lane.row)];
    return {row, lane, y: row.y + (row.stacked ? 0 : lane.lane * row.lane), high: row.stacked ? row.body : row.lane};
  }

  // All tasks in order of start.
  inOrder() {
    if (this.sorted) return this.sorted;
    const {start, count: size} = this.model.tasks;
    const first = size ? start.reduce((a, b) => Math.min(a, b)) : 0, scale = size / (this.model.end - first + 1);
    const counts = new Uint32Array(size + 2), sorted = new Uint32Array(size);
    const bucket = i => Math.min(size, Math.max(0, (start[i] - first) * scale | 0));
    for (let i = 0; i < size; i++) counts[bucket(i) + 1]++;
    for (let k = 1; k < counts.length; k++) counts[k] += counts[k - 1];
    for (let i = 0; i < size; i++) sorted[counts[bucket(i)]++] = i;
    for (let from = 0, k = 0; from < size; from = k) { // within each bucket
      const mine = bucket(sorted[from]);
      for (k = from + 1; k < size && bucket(sorted[k]) === mine;) k++;
      if (k - from > 1) sorted.subarray(from, k).sort((a, b) => start[a] - start[b] || this.model.tasks.row[a] - this.model.tasks.row[b]);
    }
    return this.sorted = sorted;
  }
}
