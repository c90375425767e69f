// How one moves in the timeline: pointer, keys, minimap, search, and the page's address.

// The stretch of time that is shown.
class View {
  constructor(model) {
    this.model = model;
    this.from = 0;
    this.to = model.work;
    this.moved = () => {};
  }

  show(from, to) {
    const {begin, end} = this.model, size = Math.min(end - begin, Math.max(LEAST, to - from));
    this.from = Math.min(Math.max(begin, from), end - size);
    this.to = this.from + size;
    this.moved();
  }

  move(part) { const step = (this.to - this.from) * part; this.show(this.from + step, this.to + step); }
  zoom(factor, at = (this.from + this.to) / 2) { this.show(at - (at - this.from) * factor, at + (this.to - at) * factor); }
}

Object.assign(Timeline.prototype, {
  // What is to follow when anything of what is shown has changed.
  changed() {
    this.draw();
    this.drawWindow();
    const {from, to} = this.view, step = (to - from) / 1000;
    $('window').textContent = `${moment(from, step)} to ${moment(to, step)} (${duration(to - from)})`;
    if (this.writes) this.write();
  },

  start() {
    const {view, canvas, frame} = this;
    this.doing = {
      left: () => view.move(-0.3), right: () => view.move(0.3), in: () => view.zoom(0.5), out: () => view.zoom(2),
      all: () => view.show(0, this.model.work), run: () => view.show(this.model.begin, this.model.end),
      errors: () => this.filterBy({errors: !this.filter.errors}),
    };
    for (const button of document.querySelectorAll('.controls button'))
      button.addEventListener('click', () => { this.writes = true; this.doing[button.dataset.do](); });
    $('errors').hidden = !this.model.tasks.failed.length;
    this.makeLegend();
    this.listenToPointer();
    canvas.addEventListener('keydown', event => this.key(event));
    frame.addEventListener('scroll', () => this.draw());
    let waiting = 0;
    $('search').addEventListener('input', () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.filterBy({text: $('search').value.trim()}), 120);
    });
    $('search').addEventListener('keydown', event => {
      if (event.key !== 'Enter' && event.key !== 'Escape') return;
      event.preventDefault();
      clearTimeout(waiting);
      if (event.key === 'Escape') $('search').value = '';
      this.filterBy({text: $('search').value.trim()});
      canvas.focus({preventScroll: true});
      if (event.key === 'Enter' && this.exactKey) this.picked = -1;
      if (event.key === 'Enter') this.step(1);
    });
    this.listenToOverview();
    document.addEventListener('keydown', event => {
      if (event.key !== '/' || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest && event.target.closest('input, textarea, select, [contenteditable]')) return;
      event.preventDefault();
      $('search').focus();
    });
    this.listenToAddress();
    redraws.push(() => { this.layOut(); this.makeOverview(); this.changed(); });
    view.moved = () => { this.changed(); cancelAnimationFrame(this.later); this.later = requestAnimationFrame(() => this.others()); };
    this.others = () => redraws.filter(one => one !== redraws[0]).forEach(one => one());
  },

  // ------------------------------------------------------------------------------ filter

  filterBy(change) {
    Object.assign(this.filter, change);
    this.writes = true;
    this.applyFilter();
    $('errors').setAttribute('aria-pressed', String(this.filter.errors));
    [...$('legend').querySelectorAll('button')].forEach((button, i) => button.setAttribute('aria-pressed',
      String(i === COLOURED ? this.filter.others : i === this.filter.fn)));
    const {tasks} = this.model;
    $('found').textContent = this.filter.text || this.filter.errors ? this.toldFound(tasks) : '';
    this.changed();
  },

  toldFound(tasks) {
    const told = tasks.count ? [`${count(this.found)} of ${count(tasks.count)} executions`] : [];
    if (this.exact && this.exact < this.found) told.push(`${count(this.exact)} of exactly this name, which come${this.exact === 1 ? 's' : ''} first`);
    if (this.foundOnTracks) told.push(`${count(this.foundOnTracks)} of kernels, copies and ranges`);
    if (!told.length) told.push('nothing');
    const where = tasks.keys || !this.filter.text || !tasks.count ? '' : ' (of so many tasks the page has no keys: by function only)';
    return told.join(', ') + where + (this.found ? '; n and p go through them' : '');
  },

  makeLegend() {
    const names = this.ranks.slice(0, COLOURED), legend = $('legend');
    if (this.ranks.length > COLOURED) names.push(`${count(this.ranks.length - COLOURED)} other${this.ranks.length > COLOURED + 1 ? 's' : ''}`);
    names.forEach((name, i) => {
      const button = made('button');
      button.type = 'button';
      button.title = plain(name);
      button.append(made('span', '', `key f${i}`), plain(name) || '–');
      button.setAttribute('aria-pressed', 'false');
      button.addEventListener('click', () => this.filterBy(i === COLOURED
        ? {fn: -1, others: !this.filter.others} : {fn: this.filter.fn === i ? -1 : i, others: false}));
      legend.append(button);
    });
    const signs = this.kinds.map(kind => [kind, {transfer: 'receives', disk: 'disk', deserialising: 'deserialises'}[kind]]);
    if (this.model.tracks.some(track => track.kind === 'stream')) signs.push(['kernel', 'kernels'], ['copy', 'copies, fills']);
    if (this.model.tasks.failed.length) signs.push(['failed', 'failed']);
    for (const [kind, text] of signs) {
      const sign = made('span', '', 'mark');
      sign.append(made('span', '', `key ${kind}`), text);
      legend.append(sign);
    }
  },

  // ------------------------------------------------------------------------------ keys

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const {view} = this;
    const keys = {
      ArrowLeft: () => view.move(event.shiftKey ? -0.9 : -0.2), ArrowRight: () => view.move(event.shiftKey ? 0.9 : 0.2),
      '+': this.doing.in, '=': this.doing.in, '-': this.doing.out, '0': this.doing.all, Home: this.doing.all,
      r: this.doing.run, e: () => this.model.tasks.failed.length && this.doing.errors(),
      n: () => this.step(1), p: () => this.step(-1),
      ArrowUp: () => this.toRow(-1), ArrowDown: () => this.toRow(1),
      Enter: () => this.enter(), ' ': () => this.toggle(this.rows[this.current]),
      '/': () => $('search').focus(), Escape: () => this.letGo(),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    this.writes = true;
    keys[event.key]();
  },

  toRow(by) {
    this.current = Math.min(this.rows.length - 1, Math.max(0, this.current + by));
    const row = this.rows[this.current];
    this.picked = -1;
    this.reveal(row);
    const {view} = this;
    this.say(this.said({title: row.name, lines: row.kind === 'path' || row.sampled ? [] : [['in view', ''], ...this.toldColumn(row, view.from, view.to)]}));
    this.changed();
  },

  reveal(row) {
    if (row.y - AXIS < this.frame.scrollTop) this.frame.scrollTop = row.y - AXIS - 4;
    else if (row.y + row.height > this.frame.scrollTop + this.height) this.frame.scrollTop = row.y + row.height - this.height + 4;
  },

  enter() {
    const row = this.rows[this.current];
    if (row && row.own.length) this.step(1);
    else if (row) this.toggle(row);
  },

  toggle(row) {
    if (!row || !row.lines.length || row.kind === 'ranges') return;
    row.open = !row.open;
    this.layOut();
    this.changed();
  },

  letGo() {
    this.picked = this.current = -1;
    this.mark = this.about = null;
    $('search').value = '';
    $('card').hidden = true;
    this.say('');
    this.sayAbout();
    this.filterBy({fn: -1, others: false, text: '', errors: false});
  },

  // ------------------------------------------------------------------------------ pointer

  listenToPointer() {
    const {canvas, view} = this, touches = new Map();
    const place = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let frame = 0;
    const soon = act => { cancelAnimationFrame(frame); frame = requestAnimationFrame(act); };
    let pinch = null;
    canvas.addEventListener('pointerdown', event => {
      if (event.button !== 0) return;
      const [px, py] = place(event);
      $('card').hidden = true;
      this.writes = true;
      if (event.pointerType === 'touch') {
        touches.set(event.pointerId, px);
        if (touches.size === 2) {
          const [a, b] = [...touches.values()].sort((l, r) => l - r);
          pinch = {a: this.us(a), b: this.us(b)};
          this.drag = null;
          return;
        }
      }
      const hit = px < this.gutter ? this.at(px, py) : null;
      if (hit) { this.current = hit.place; this.toggle(hit.row); this.changed(); return; }
      if (px < this.gutter) return;
      const moves = event.shiftKey || event.pointerType === 'touch';
      this.drag = {from: px, to: px, moves, select: false, begin: view.from, size: view.to - view.from};
      try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
    });
    canvas.addEventListener('pointermove', event => {
      const [px, py] = place(event);
      if (touches.has(event.pointerId)) touches.set(event.pointerId, px);
      if (pinch && touches.size === 2) {
        const [a, b] = [...touches.values()].sort((l, r) => l - r);
        if (b - a < 8) return;
        const scale = (pinch.b - pinch.a) / (b - a), from = pinch.a - (a - this.gutter) * scale;
        soon(() => view.show(from, from + (this.width - this.gutter) * scale));
        return;
      }
      const {drag} = this;
      if (drag) {
        drag.to = Math.max(this.gutter, Math.min(this.width, px));
        drag.select = !drag.moves && Math.abs(drag.to - drag.from) > 3;
        if (drag.moves) {
          const by = (drag.from - px) / (this.width - this.gutter) * drag.size;
          soon(() => view.show(drag.begin + by, drag.begin + by + drag.size));
        } else soon(() => this.draw());
        return;
      }
      if (event.pointerType !== 'touch') soon(() => this.showCard(px, py, event.clientX, event.clientY));
    });
    const end = event => {
      touches.delete(event.pointerId);
      if (pinch) { if (!touches.size) pinch = null; this.drag = null; return; }
      const {drag} = this;
      this.drag = null;
      if (!drag) return;
      const [from, to] = [Math.min(drag.from, drag.to), Math.max(drag.from, drag.to)];
      if (event.type === 'pointercancel') { this.draw(); return; }
      if (to - from > 3) { if (!drag.moves) view.show(this.us(from), this.us(to)); return; }
      const found = this.at(...place(event));
      if (!found) return;
      this.current = found.place;
      if (found.task >= 0) { this.pick(found.task, false); return; }
      const page = found.line && found.span >= 0 && found.line.track.page ? found.line.track.page[found.line.own[found.span]] : -1;
      this.picked = page;
      this.say(this.said(this.told(found)));
      this.changed();
    };
    canvas.addEventListener('pointerup', end);
    canvas.addEventListener('pointercancel', end);
    canvas.addEventListener('pointerleave', () => { cancelAnimationFrame(frame); $('card').hidden = true; });
    canvas.addEventListener('dblclick', event => { if (place(event)[0] > this.gutter) this.doing.all(); });
    canvas.addEventListener('wheel', event => {
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (!event.ctrlKey && !event.metaKey && !sideways) return; // the page scrolls
      event.preventDefault();
      this.writes = true;
      $('card').hidden = true;
      if (sideways && !event.ctrlKey) view.move((event.deltaX || event.deltaY) / 1000);
      else view.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.us(place(event)[0]));
    }, {passive: false});
  },

  showCard(px, py, left, top) {
    const found = px < this.gutter ? null : this.at(px, py), card = $('card');
    card.hidden = !found;
    if (!found) return;
    const {title, lines} = this.told(found), list = made('dl');
    for (const [name, value, kind] of lines)
      list.append(made('dt', name.length > 40 ? `${name.slice(0, 39)}…` : name), made('dd', value.length > 160 ? `${value.slice(0, 159)}…` : value, kind || ''));
    card.replaceChildren(made('b', title.length > 160 ? `${title.slice(0, 159)}…` : title), list);
    const {offsetWidth: wide, offsetHeight: high} = card;
    card.style.left = `${Math.max(4, left + 16 + wide > innerWidth ? left - wide - 12 : left + 16)}px`;
    card.style.top = `${Math.max(4, top + 16 + high > innerHeight ? top - high - 12 : top + 16)}px`;
  },

  // ------------------------------------------------------------------------------ minimap

  // Draws the whole recording once; its window is drawn anew at each step.
  makeOverview() {
    const canvas = $('overview'), {model} = this, high = 40;
    const width = canvas.clientWidth;
    if (!width) return;
    prepared(canvas, width, high);
    const c = colours();
    if (this.shadesOf !== c) this.makeShades(c);
    const columns = canvas.width, pixels = new Pixels(columns, canvas.height), filled = new Float32Array(PLANES * columns);
    let most = 0;
    for (const row of model.rows) {
      if (row.kind === 'worker' && row.binned) {
        fillFromBins(filled, columns, row.binned, model.bins, SHADES - 2, model.begin, model.end, model.begin, model.end);
        most++;
      } else if (row.kind === 'worker') for (const lane of row.own) {
        this.spans.fill(filled, columns, lane.from, lane.to, model.begin, model.end);
        most++;
      }
    }
    if (!model.tasks.count) for (const row of this.rows) for (const line of row.streams.length ? row.lines : []) {
      line.spans.fill(filled, columns, 0, line.own.length, model.begin, model.end);
      most++;
    }
    pixels.words.fill(this.ground.idle);
    pixels.stack(filled, columns, this.shades, this.ground.idle, 0, 0, pixels.height, 1 / Math.max(1, most));
    this.overview = pixels.image;
  },

  drawWindow() {
    const canvas = $('overview'), {model, view} = this, c = colours();
    if (!this.overview) this.makeOverview();
    if (!this.overview) return;
    const pen = canvas.getContext('2d'), w = canvas.width, h = canvas.height, length = model.end - model.begin;
    const x = us => (us - model.begin) / length * w;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.putImageData(this.overview, 0, 0);
    pen.fillStyle = c.faint;
    pen.globalAlpha = 0.22;
    pen.fillRect(0, 0, x(0), h);
    pen.fillRect(x(model.work), 0, w - x(model.work), h);
    pen.fillStyle = c.paper;
    pen.globalAlpha = 0.6;
    const left = x(view.from), right = Math.max(left + 2, x(view.to));
    pen.fillRect(0, 0, left, h);
    pen.fillRect(right, 0, w - right, h);
    pen.globalAlpha = 1;
    pen.strokeStyle = c.ink;
    pen.lineWidth = 2;
    pen.strokeRect(left + 1, 1, Math.max(1, right - left - 2), h - 2);
  },

  listenToOverview() {
    const canvas = $('overview'), {view, model} = this;
    let grip = null;
    const us = event => { const box = canvas.getBoundingClientRect(); return model.begin + (event.clientX - box.left) / box.width * (model.end - model.begin); };
    canvas.addEventListener('pointerdown', event => {
      const at = us(event), slack = (model.end - model.begin) / canvas.clientWidth * 6, size = view.to - view.from;
      this.writes = true;
      if (Math.abs(at - view.from) < slack && size > 3 * slack) grip = {edge: 'from'};
      else if (Math.abs(at - view.to) < slack && size > 3 * slack) grip = {edge: 'to'};
      else {
        if (at < view.from || at > view.to) view.show(at - size / 2, at + size / 2);
        grip = {by: at - view.from};
      }
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', event => {
      if (!grip) return;
      const at = us(event);
      if (grip.edge === 'from') view.show(Math.min(at, view.to), view.to);
      else if (grip.edge === 'to') view.show(view.from, Math.max(at, view.from));
      else view.show(at - grip.by, at - grip.by + view.to - view.from);
    });
    for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => { grip = null; });
  },

  // ------------------------------------------------------------------------------ address

  // A link adds an entry to the history, as links do; with the entry it leaves goes what was seen
  // there, so that going back shows it again. Zooming changes the entry that there is.
  listenToAddress() {
    document.addEventListener('click', event => {
      if (event.target.closest('a[href^="#"]')) this.keep();
    }, true);
    addEventListener('popstate', event => {
      if (event.state && event.state.view) this.restore(event.state);
    });
    addEventListener('hashchange', () => {
      if (!(history.state && history.state.view)) this.obey();
    });
  },

  keep() {
    const {view, picked, current, mark, about} = this;
    if (this.writing) this.writeNow();
    history.replaceState({
      view: [view.from, view.to], picked, current, mark, about, filter: {...this.filter},
      said: [$('picked').textContent, $('picked').classList.contains('told')],
      lanes: this.frame.scrollTop, scroll: [scrollX, scrollY],
    }, '');
  },

  restore({view, picked, current, mark, about, filter, said, lanes, scroll}) {
    Object.assign(this, {mark, about});
    this.filterBy(filter);
    Object.assign(this, {picked, current});
    $('search').value = filter.text;
    this.say(...said);
    this.sayAbout();
    this.view.show(...view);
    this.stopWriting();
    this.frame.scrollTop = lanes;
    scrollTo(...scroll);
  },

  stopWriting() {
    this.writes = false;
    clearTimeout(this.writing);
    this.writing = 0;
  },

  // Goes where the page's address says: #t=FROM,TO in seconds, w=PROCESS, task=ROW, f=FUNCTION;
  // m=FROM,TO is marked there, of finding i=NUMBER.
  obey() {
    const words = new Map(location.hash.slice(1).split('&').map(word => {
      const at = word.indexOf('=');
      return at < 0 ? [word, ''] : [word.slice(0, at), word.slice(at + 1)];
    }));
    if (!['t', 'w', 'task', 'f'].some(name => words.has(name))) return;
    const {model, view} = this;
    const ends = name => {
      const span = (words.get(name) || '').split(',').map(end => end.trim() ? Number(end) * 1e6 : NaN);
      return span.length === 2 && span.every(Number.isFinite) && span[1] >= span[0] ? span : null;
    };
    const span = ends('t'), finding = words.has('i') ? $(`finding-${words.get('i')}`) : null;
    this.mark = ends('m');
    this.about = finding && {number: words.get('i'), name: finding.dataset.about, saves: finding.dataset.saves};
    this.sayAbout();
    this.say('');
    let fn = -1;
    if (words.has('f')) {
      let name = words.get('f');
      try { name = decodeURIComponent(name); } catch { /* as it stands */ }
      fn = this.ranks.indexOf(name);
    }
    this.filterBy({fn, others: false, text: '', errors: false});
    $('search').value = '';
    this.picked = this.current = -1;
    if (words.get('w')) {
      this.current = this.rows.findIndex(row => row.process === Number(words.get('w')));
      if (this.current >= 0) this.reveal(this.rows[this.current]);
    }
    if (span) view.show(span[0], Math.max(span[1], span[0] + LEAST));
    const task = words.has('task') && words.get('task') !== '' ? model.tasks.row.indexOf(Number(words.get('task'))) : -1;
    if (task >= 0) {
      if (!span) {
        const took = Math.max(1, model.tasks.stop[task] - model.tasks.start[task]);
        view.show(model.tasks.start[task] - 2 * took, model.tasks.stop[task] + 2 * took);
      }
      this.pick(task, 'down');
    } else if (words.has('task')) this.say('This task is not in the page, which has the longest and the failed ones.');
    else if (this.current >= 0 && words.has('w')) this.say(this.said({title: this.rows[this.current].name, lines: this.toldColumn(this.rows[this.current], view.from, view.to)}));
    else if (fn >= 0) this.say(`${this.ranks[fn]}: shown alone${model.tasks.count ? ` · ${count(this.found)} executions` : ''}`);
    this.stopWriting();
    this.changed();
    $('timeline').scrollIntoView({block: 'start'});
    this.canvas.focus({preventScroll: true});
  },

  // Writes what is shown into the page's address, once it stands still.
  write() {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.writeNow(), 250);
  },

  writeNow() {
    clearTimeout(this.writing);
    this.writing = 0;
    const {view, model, filter} = this, seconds = us => String(Number((us / 1e6).toFixed(9)));
    const row = this.rows[this.current], words = [`t=${seconds(view.from)},${seconds(view.to)}`];
    if (row && row.process !== undefined) words.push(`w=${row.process}`);
    if (this.picked >= 0) words.push(`task=${model.tasks.row[this.picked]}`);
    if (filter.fn >= 0) words.push(`f=${encodeURIComponent(this.ranks[filter.fn])}`);
    if (this.mark) words.push(`m=${this.mark.map(seconds).join(',')}`);
    if (this.about) words.push(`i=${this.about.number}`);
    history.replaceState(history.state, '', `#${words.join('&')}`);
  },
});

// ------------------------------------------------------------------------------------ the beginning

const timelineDrawn = unpacked().then(([{timeline, curves, memory}, columns]) => {
  const model = readTimeline(timeline, columns), view = new View(model);
  if ($('chart')) {
    const line = new Timeline(model, view);
    line.start();
    line.changed();
    makeCurves(curves, model, view);
    line.obey();
    $('chart').timeline = line; // for tests, and for the console
  } else makeCurves(curves, model, view);
  makeMemory(memory, columns, model, view);
  makeGraph();
  document.body.dataset.ready = 'yes';
}).catch(error => {
  const told = $('picked') || $('timeline');
  if (told) told.append(` The timeline cannot be drawn here: ${error}. A browser of 2023 or newer can.`);
  throw error;
});
