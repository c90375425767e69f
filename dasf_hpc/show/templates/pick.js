// What is at a place of the timeline, in words; and the task that was picked, with its arrows.

Object.assign(Timeline.prototype, {
  // Gives the row under a pixel, the time, and the task or span there: -1 for none that can be told.
  at(px, py) {
    const y = py + this.top, time = this.us(px);
    const place = this.rows.findIndex(row => y >= row.y - GAP / 2 && y < row.y + row.height + GAP / 2);
    if (place < 0 || py < AXIS - 6) return null;
    const row = this.rows[place], found = {place, row, time, task: -1, line: null, span: -1, mark: null};
    const pixel = (this.view.to - this.view.from) / (this.width - this.gutter), under = y - row.y - row.body;
    if (under >= row.strip && row.open) {
      found.line = row.lines[Math.min(row.lines.length - 1, Math.floor((under - row.strip) / LINE))] || null;
      if (found.line) found.span = this.nearest(found.line.spans, 0, found.line.own.length, time, pixel);
    } else if (under >= 0 && row.strip) {
      found.mark = row.marks[MARKS.indexOf(this.kinds[Math.min(this.kinds.length - 1, Math.floor(Math.max(0, under - 1) / MARK))])];
    } else if (row.own.length && (!row.stacked || row.binned)) {
      const lane = row.own[Math.min(row.own.length - 1, Math.max(0, Math.floor((y - row.y) / row.lane)))];
      found.task = this.nearest(this.spans, lane.from, lane.to, time, pixel);
    }
    return found;
  },

  // The span at a time, or the only one next to it; -1 where several share the pixel.
  nearest(spans, low, high, time, pixel) {
    const [first, last] = spans.visible(low, high, time - 2 * pixel, time + 2 * pixel);
    for (let i = first; i < last; i++)
      if (spans.start[i] <= time && time <= spans.stop[i] && spans.stop[i] - spans.start[i] >= pixel) return i;
    return last - first === 1 ? first : -1;
  },

  // Gives a title and lines of name and value about a place.
  told(found) {
    const {row, time} = found, {model, view} = this;
    if (found.task >= 0) return this.toldTask(found.task);
    if (found.line && found.span >= 0) return this.toldSpan(found.line.track, found.line.own[found.span], row);
    const step = (view.to - view.from) / (this.width - this.gutter);
    if (row.kind === 'path') {
      const {path} = model, i = path.start.findIndex((s, k) => s <= time && time <= s + path.took[k]);
      if (i < 0) return {title: 'critical path', lines: []};
      return {title: `critical path: ${path.kind[i]} ${path.function[i]}`,
        lines: [['took', duration(path.took[i])], ['from', moment(path.start[i], 1e3)], ['worker', path.worker[i] || '–']]};
    }
    const lines = [['at', `${moment(time, step)} (${duration(step)} a pixel)`]];
    if (found.mark) {
      const mark = found.mark, near = [];
      for (let i = firstFrom(mark.start, 0, mark.count, time + 2 * step) - 1; i >= 0 && near.length < 4 && mark.start[i] > time - 6e7; i--)
        if (mark.stop[i] >= time - 2 * step) near.push(i);
      const names = {transfer: 'receives data', disk: 'disk', deserialising: 'deserialises'};
      for (const i of near) {
        const name = model.names[mark.name[i]], bytes = mark.nbytes ? size(mark.nbytes[i]) : -1;
        lines.push([mark.kind === 'transfer' ? `from ${name || '?'}` : name,
          `${duration(mark.stop[i] - mark.start[i])}${bytes >= 0 ? `, ${amount(bytes, 'bytes')}` : ''}`]);
      }
      return {title: `${row.name}: ${near.length ? names[mark.kind] : 'nothing here'}`, lines};
    }
    if (row.sampled) {
      const part = SHARE[row.sampled[Math.floor((time - model.begin) / (model.end - model.begin) * row.sampled.length)]];
      return {title: row.name, lines: [...lines, ['utilisation', part === undefined ? 'not sampled' : `${share(part)}, sampled`]]};
    }
    return {title: row.name, lines: [...lines, ...this.toldColumn(row, time - step / 2, time + step / 2)]};
  },

  // What share of a column of pixels is busy, and with what.
  toldColumn(row, from, to) {
    const filled = new Float32Array(PLANES), {model} = this, lines = [];
    if (row.kind === 'ranges') return lines; // what is not in a range may be anything
    if (row.kind === 'gpu') {
      if (row.binned) fillFromBins(filled, 1, row.binned, row.gpu_bins, 2, model.begin, model.end, from, to);
      else if (row.busy) row.busy.forEach((spans, p) => spans.fill(filled.subarray(p), 1, ...spans.visible(0, spans.start.length, from, to), from, to));
      const all = row.binned ? filled[0] + filled[1] : filled[1];
      return [['kernels', share(filled[0])], ['copies and fills alone', share(Math.max(0, all - filled[0]))]];
    }
    if (row.binned) fillFromBins(filled, 1, row.binned, model.bins, SHADES - 2, model.begin, model.end, from, to);
    else for (const lane of row.own) this.spans.fill(filled, 1, ...this.spans.visible(lane.from, lane.to, from, to), from, to);
    const threads = row.binned ? 1 : Math.max(1, row.own.length);
    const parts = [...filled.keys()].slice(0, SHADES).map(p => [p, (filled[p] + filled[p + SHADES]) / threads]).filter(([, part]) => part > 0);
    lines.push(['busy', share(parts.reduce((sum, [, part]) => sum + part, 0)) + (row.own.length > 1 ? ` of ${row.own.length} threads` : '')]);
    for (const [p, part] of parts.sort((a, b) => b[1] - a[1]).slice(0, 4))
      lines.push([p === COLOURED ? 'other functions' : model.functions[p], share(part)]);
    return lines;
  },

  toldTask(i) {
    const {model} = this, {tasks} = model, bad = tasks.state.get(i), bytes = size(tasks.nbytes[i]);
    const {row} = this.placeOf(i), lines = [];
    if (tasks.keys && tasks.keys[i]) lines.push(['key', tasks.keys[i]]);
    lines.push(['took', duration(tasks.stop[i] - tasks.start[i])], ['from', moment(tasks.start[i], 1)], ['on', row.name]);
    if (bad) lines.push(['ended', bad.exception ? `${bad.state}: ${bad.exception}` : bad.state, tasks.bad.has(i) ? 'bad' : '']);
    if (bytes >= 0) lines.push(['result', amount(bytes, 'bytes')]);
    const [inputs, dependents] = this.linked(i);
    if (inputs.length) lines.push(['inputs', this.listed(inputs)]);
    if (dependents.length) lines.push(['needed by', this.listed(dependents)]);
    if (!tasks.edges.all && !inputs.length) lines.push(['inputs', 'not in this page, which has those of the longest tasks']);
    lines.push(['task', `row ${tasks.row[i]} of table tasks`]);
    return {title: model.functions[tasks.fn[i]], lines};
  },

  listed(some) {
    const {tasks, functions} = this.model, of = new Map();
    for (const i of some) of.set(tasks.fn[i], (of.get(tasks.fn[i]) || 0) + 1);
    return `${count(some.length)}: ${[...of].slice(0, 4).map(([fn, number]) => `${functions[fn]}${number > 1 ? ` ×${number}` : ''}`).join(', ')}`;
  },

  toldSpan(track, i, row) {
    const {model} = this, page = track.page ? track.page[i] : -1, bytes = track.nbytes ? size(track.nbytes[i]) : -1;
    const lines = [['took', duration(track.stop[i] - track.start[i])], ['from', moment(track.start[i], 1)], ['on', `${row.name} ${track.label}`]];
    if (bytes >= 0) lines.push(['size', amount(bytes, 'bytes')]);
    if (page >= 0) {
      lines.push(['of task', model.functions[model.tasks.fn[page]]]);
      if (model.tasks.keys) lines.push(['key', model.tasks.keys[page]]);
    }
    return {title: model.names[track.name[i]] || track.kind, lines};
  },

  said({title, lines}) {
    return [title, ...lines.map(([name, value]) => `${name} ${value}`)].join(' · ');
  },

  // Gives the tasks that one needs, and those that need it.
  linked(i) {
    const {edges, count: size} = this.model.tasks;
    if (!this.links) {
      const byInput = new Uint32Array(edges.task.length), firsts = new Uint32Array(size + 1);
      for (const input of edges.input) firsts[input + 1]++;
      for (let k = 0; k < size; k++) firsts[k + 1] += firsts[k];
      const next = firsts.slice();
      edges.input.forEach((input, k) => { byInput[next[input]++] = k; });
      this.links = {byInput, firsts};
    }
    const inputs = [], dependents = [];
    for (let k = firstFrom(edges.task, 0, edges.task.length, i); k < edges.task.length && edges.task[k] === i; k++) inputs.push(edges.input[k]);
    for (let k = this.links.firsts[i]; k < this.links.firsts[i + 1]; k++) dependents.push(edges.task[this.links.byInput[k]]);
    return [inputs, dependents];
  },

  drawPicked(c) {
    const {pen, model, top} = this, {tasks} = model, i = this.picked;
    const end = k => { const {y, high} = this.placeOf(k); return y - top + high / 2; };
    const [inputs, dependents] = this.linked(i);
    pen.lineWidth = 1.3;
    for (const [one, other] of [...inputs.slice(0, 100).map(k => [k, i]), ...dependents.slice(0, 100).map(k => [i, k])]) {
      const from = Math.max(-1e4, this.x(tasks.stop[one])), to = Math.min(1e4, this.x(tasks.start[other]));
      const y = end(one), last = end(other), bend = Math.max(12, Math.abs(to - from) / 3);
      pen.strokeStyle = pen.fillStyle = one === i ? c.serious : c.ink;
      pen.setLineDash(one === i ? [5, 3] : []);
      pen.beginPath();
      pen.moveTo(from, y);
      pen.bezierCurveTo(from + bend, y, to - bend, last, to, last);
      pen.stroke();
      pen.setLineDash([]);
      pen.beginPath();
      pen.moveTo(to, last);
      pen.lineTo(to - 6, last - 3.5);
      pen.lineTo(to - 6, last + 3.5);
      pen.fill();
    }
    const {y, high} = this.placeOf(i), left = this.x(tasks.start[i]), wide = this.x(tasks.stop[i]) - left;
    pen.strokeStyle = c.paper;
    pen.lineWidth = 5;
    pen.strokeRect(left - 1, y - top - 1, Math.max(2, wide + 2), high + 1);
    pen.strokeStyle = c.ink;
    pen.lineWidth = 2.5;
    pen.strokeRect(left - 1, y - top - 1, Math.max(2, wide + 2), high + 1);
    for (const row of this.rows) if (row.open) row.lines.forEach((line, place) => {
      const {track, own, spans} = line;
      if (!track.page || !line.seen) return;
      for (let k = line.seen[0]; k < line.seen[1]; k++) if (track.page[own[k]] === i)
        pen.strokeRect(this.x(spans.start[k]), row.y - top + row.body + row.strip + place * LINE + 1, Math.max(1, this.x(spans.stop[k]) - this.x(spans.start[k])), LINE - 2);
    });
  },

  // Picks a task, and goes where it is; or only up or down to its row.
  pick(i, go = true) {
    this.picked = i;
    if (i < 0) { this.say(''); this.changed(); return; }
    const {start, stop} = this.model.tasks, {row, y, high} = this.placeOf(i);
    this.current = this.rows.indexOf(row);
    this.say(this.said(this.toldTask(i)));
    if (go) {
      if (y - AXIS < this.frame.scrollTop) this.frame.scrollTop = y - AXIS - 10;
      else if (y + high > this.frame.scrollTop + this.height) this.frame.scrollTop = y + high - this.height + 20;
      const took = stop[i] - start[i], {from, to} = this.view;
      if (go !== 'down' && (start[i] < from || stop[i] > to)) {
        const wide = Math.max(to - from, took * 1.2), middle = (start[i] + stop[i]) / 2;
        this.view.show(middle - wide / 2, middle + wide / 2);
        return;
      }
    }
    this.changed();
  },

  say(text, told = text !== '') {
    $('picked').textContent = plain(text);
    $('picked').classList.toggle('told', told);
  },

  // Says which finding is shown, and leads back to it.
  sayAbout() {
    const {about} = this;
    $('shown').hidden = !about;
    if (!about) return;
    const back = made('a', 'back to the finding');
    back.href = `#finding-${about.number}`;
    $('shown').replaceChildren(`Shown: ${plain([about.name, about.saves].filter(Boolean).join(', '))} · `, back);
  },

  // Goes to the next task, or the one before: of those that are found, or of the current row.
  step(by) {
    const {tasks} = this.model, {view} = this;
    if (!tasks.count) return;
    if (!this.filtered && this.current >= 0 && this.rows[this.current].own.length) {
      const next = this.stepInRow(this.rows[this.current], by);
      if (next >= 0) this.pick(next);
      return;
    }
    if (!this.order) {
      this.order = this.filtered ? this.inOrder().filter(i => this.matches[i]) : this.inOrder();
      if (this.exact) this.order = [...this.order.filter(this.exactly), ...this.order.filter(i => !this.exactly(i))];
    }
    const place = this.order.indexOf(this.picked);
    let next = place < 0 ? this.order.findIndex(i => tasks.start[i] >= view.from) : place + by;
    if (place < 0 && (next < 0 || this.exactKey)) next = 0;
    if (next >= 0 && next < this.order.length) this.pick(this.order[next]);
  },

  stepInRow(row, by) {
    const {start} = this.model.tasks, mine = this.picked >= 0 && row.own.some(lane => lane.from <= this.picked && this.picked < lane.to);
    const at = mine ? start[this.picked] : this.view.from;
    let best = -1;
    for (const lane of row.own) {
      let i = firstFrom(start, lane.from, lane.to, at);
      if (by > 0) { while (mine && i < lane.to && (start[i] === at && i <= this.picked)) i++; } else {
        while (i < lane.to && start[i] === at && i < this.picked) i++;
        i--;
      }
      if (i < lane.from || i >= lane.to || i === this.picked) continue;
      if (best < 0 || (start[i] - start[best]) * by < 0) best = i;
    }
    return best;
  },
});
