// The flame graph: calls within calls, as wide as their share of the time, the outermost on top.

// Functions that stand apart, the longest; all others are one: each takes memory for all calls.
const CALL = 18, NARROW = 0.4, APART = 50;
const ORIGINS = {
  own: ['own code', '#e69f00', ''], package: ['packages', '#7cc4ee', ''], dask: ['Dask', '#5cc4a1', 'lines'],
  'standard library': ['standard library', '#c3c8ce', 'dots'], 'dasf-hpc': ['dasf-hpc', '#dda3c3', 'bars'],
  '': ['compiled code', '#ded9a5', 'steps'], group: ['', '#e4e7eb', ''],
};

// The pattern of an origin: colour alone does not carry it.
function hatched(pen, kind) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 8;
  const one = tile.getContext('2d');
  one.strokeStyle = one.fillStyle = 'rgba(0, 0, 0, 0.16)';
  one.lineWidth = 1.2;
  one.beginPath();
  if (kind === 'lines') for (const x of [-8, 0, 8]) { one.moveTo(x, 8); one.lineTo(x + 8, 0); }
  else if (kind === 'bars') { one.moveTo(4, 0); one.lineTo(4, 8); }
  else if (kind === 'steps') { one.moveTo(0, 4); one.lineTo(8, 4); }
  else one.fillRect(3, 3, 2, 2);
  one.stroke();
  return pen.createPattern(tile, 'repeat');
}

class Flame {
  constructor(told, columns) {
    const column = (number, kind) => numbers(columns[number], kind);
    Object.assign(this, {told, zoomed: [], text: '', current: null, side: null, rects: []});
    this.canvas = $('flame');
    const up = column(told.parent), size = up.length;
    this.parent = Int32Array.from(up, (step, i) => i - unsigned(step));
    this.frame = column(told.frame);
    this.line = column(told.line);
    this.size = size;
    this.children = [...Array(size)].map(() => []);
    this.roots = [];
    for (let i = 0; i < size; i++) (this.parent[i] < 0 ? this.roots : this.children[this.parent[i]]).push(i);
    this.idle = new Set(told.idle);
    this.tables = told.tables.map(table => this.readTable(table, column));
    this.makeChoices();
    this.listen();
    this.choose();
  }

  // A table's cells one by one: group, worker, call, bin, samples, weight.
  readTable(table, column) {
    const group = column(table.group), process = column(table.process), steps = column(table.node);
    const cells = column(table.cells), bins = column(table.bin), samples = column(table.samples), weight = column(table.weight);
    const found = {by: table.by, size: bins.length, samples, weight};
    for (const name of ['group', 'process', 'node', 'bin']) found[name] = new Int32Array(bins.length);
    for (let pair = 0, cell = 0, node = 0; pair < cells.length; pair++) {
      node += unsigned(steps[pair]);
      for (let k = 0, bin = 0; k < cells[pair]; k++, cell++) {
        found.group[cell] = group[pair];
        found.process[cell] = process[pair] - 1;
        found.node[cell] = node;
        found.bin[cell] = bin += bins[cell];
      }
    }
    return found;
  }

  // ------------------------------------------------------------------------------ what is shown

  makeChoices() {
    const {told} = this, spent = new Float64Array(told.groups.length), table = this.tables[0];
    for (let i = 0; i < table.size; i++) if (!this.idle.has(table.node[i])) spent[table.group[i]] += table.weight[i];
    const functions = told.groups.map(([, kind], i) => i).filter(i => told.groups[i][1] === 'function' && spent[i] > 0)
      .sort((a, b) => spent[b] - spent[a]);
    const others = told.groups.map((_, i) => i).filter(i => told.groups[i][1] !== 'function' && table.group.includes(i));
    const option = (value, text) => {
      const one = made('option', text.length > 60 ? `${text.slice(0, 59)}…` : text);
      one.value = value;
      return one;
    };
    const set = (label, options) => {
      const one = made('optgroup');
      one.label = label;
      one.append(...options);
      return one;
    };
    const all = functions.reduce((sum, i) => sum + spent[i], 0) || 1;
    this.functions = functions;
    const named = i => told.groups[i][0].replace(/^\((.*)\)$/, '$1');
    if (functions.length) $('flame-of').append(option('all', 'all functions'));
    if (functions.length) $('flame-of').append(set('Functions', functions.map(i => option(String(i), `${told.groups[i][0]} ${share(spent[i] / all)}`))));
    if (others.length) $('flame-of').append(set('Other threads', others.map(i => option(String(i), named(i)))));
    $('flame-on').append(option('', 'all workers'), ...told.workers.map(([name, row]) => option(String(row), name)));
    $('flame-with').append(option('', 'nothing'), set('Time', [
      option('halves', 'its second half of the time'), option('rest', 'the time outside of the timeline’s')]));
    if (functions.length > 1) $('flame-with').append(set('Functions', functions.map(i => option(`f${i}`, told.groups[i][0]))));
    if (told.workers.length > 1) $('flame-with').append(set('Workers', told.workers.map(([name, row]) => option(`w${row}`, name))));
    if (!$('chart')) $('flame-window').disabled = true;
  }

  view() {
    const line = $('chart') && $('chart').timeline;
    return line ? [line.view.from, line.view.to] : null;
  }

  // The bins of a stretch of time, us, whole ones: from the first to before the last.
  binsOf(from, to) {
    const {begin, end, bins} = this.told, bin = us => (us - begin) / Math.max(1e-9, end - begin) * bins;
    const first = Math.max(0, Math.floor(bin(from) + 1e-6));
    return [first, Math.max(first + 1, Math.min(bins, Math.ceil(bin(to) - 1e-6)))];
  }

  // Reads the choices; gives one or two queries of groups, a worker and bins.
  choose() {
    const of = $('flame-of').value, on = $('flame-on').value, versus = $('flame-with').value, {bins} = this.told;
    const whole = this.tables.length === 1;
    const window = $('flame-window'), seen = this.view();
    // in a page of many samples workers and times are known, not both together
    window.disabled = !seen || !whole && (on !== '' || versus.startsWith('w'));
    for (const one of $('flame-with').querySelectorAll('option')) {
      const time = one.value === 'halves' || one.value === 'rest';
      one.disabled = time && !whole && on !== '' || one.value === 'rest' && (!window.checked || window.disabled)
        || one.value.startsWith('w') && !whole && window.checked && !window.disabled;
    }
    const asked = [...$('flame-with').selectedOptions][0];
    if (asked && asked.disabled) { $('flame-with').value = ''; this.choose(); return; }
    const base = {
      groups: of === 'all' ? this.functions : [Number(of)], process: on === '' ? -1 : Number(on),
      bins: window.checked && !window.disabled ? this.binsOf(...seen) : null, outside: false,
    };
    const name = $('flame-of').selectedOptions[0] ? $('flame-of').selectedOptions[0].textContent : '';
    let other = null;
    this.of = of === 'all' ? name : this.told.groups[Number(of)][0].replace(/^\((.*)\)$/, '$1');
    this.about = versus.startsWith('f') ? '' : `${this.of}: `;
    this.names = [this.of, ''];
    this.apart = of === 'all' && !versus.startsWith('f');
    if (versus === 'halves') {
      const [first, last] = base.bins || this.usedBins(base), middle = Math.max(first + 1, (first + last) >> 1);
      other = {...base, bins: [middle, Math.max(last, middle + 1)]};
      base.bins = [first, middle];
      this.names = ['the first half', 'the second half'];
    } else if (versus === 'rest') {
      other = {...base, outside: true};
      this.names = ['in the timeline', 'outside of it'];
    } else if (versus.startsWith('f')) {
      other = {...base, groups: [Number(versus.slice(1))]};
      this.names = [of === 'all' ? 'all functions' : this.told.groups[Number(of)][0], this.told.groups[Number(versus.slice(1))][0]];
    } else if (versus.startsWith('w')) {
      other = {...base, process: Number(versus.slice(1))};
      this.names = [$('flame-on').selectedOptions[0].textContent, $('flame-with').selectedOptions[0].textContent];
    }
    $('flame-idle-label').hidden = !this.idle.size || of === 'all' || this.told.groups[Number(of)][1] === 'function';
    this.withIdle = $('flame-idle').checked || $('flame-idle-label').hidden;
    this.sides = [this.sum(base), other && this.sum(other)];
    this.layOut();
    this.draw();
    this.say();
  }

  // From the first bin that has anything to the last.
  usedBins({groups, process}) {
    const table = this.tables[0], wanted = new Set(groups);
    let first = this.told.bins, last = 0;
    for (let i = 0; i < table.size; i++) {
      if (!wanted.has(table.group[i]) || process >= 0 && table.process[i] >= 0 && table.process[i] !== process) continue;
      first = Math.min(first, table.bin[i]);
      last = Math.max(last, table.bin[i] + 1);
    }
    return first < last ? [first, last] : [0, 1];
  }

  // Sums up by group and call: in itself, in all, samples; of one group or of each.
  sum({groups, process, bins, outside}) {
    const table = this.tables.find(one => (process < 0 || one.by.includes('process')) && (!bins || one.by.includes('bin')));
    const place = new Map(groups.map((group, k) => [group, this.apart ? Math.min(k, APART) : 0]));
    const found = [...Array(this.apart ? Math.min(groups.length, APART + 1) : 1)].map((_, k) => ({
      group: groups[k], own: new Float64Array(this.size), whole: new Float64Array(this.size),
      samples: new Float64Array(this.size), all: 0, count: 0,
    }));
    const unit = this.told.unit || 1;
    for (let i = 0; i < table.size; i++) {
      const k = place.get(table.group[i]);
      if (k === undefined || process >= 0 && table.process[i] !== process) continue;
      if (bins && (table.bin[i] >= bins[0] && table.bin[i] < bins[1]) === outside) continue;
      if (!this.withIdle && this.idle.has(table.node[i])) continue;
      const one = found[k];
      one.own[table.node[i]] += table.weight[i] * unit;
      one.samples[table.node[i]] += table.samples[i];
      one.all += table.weight[i] * unit;
      one.count += table.samples[i];
    }
    for (const one of found) {
      one.whole.set(one.own);
      // a call stands after the one that made it
      for (let i = this.size - 1; i >= 0; i--) if (this.parent[i] >= 0) {
        one.whole[this.parent[i]] += one.whole[i];
        one.samples[this.parent[i]] += one.samples[i];
      }
    }
    return {parts: found, all: found.reduce((sum, one) => sum + one.all, 0), count: found.reduce((sum, one) => sum + one.count, 0)};
  }

  // ------------------------------------------------------------------------------ layout

  // What is told of a place: a part and a call in it, -1: the part itself; of each side.
  values(part, node) {
    return this.sides.map(side => {
      if (!side) return null;
      const one = part < 0 ? null : side.parts[part], all = side.all || 1;
      if (part < 0) return {own: 0, whole: side.all, samples: side.count, share: side.all ? 1 : 0};
      if (node < 0) return {own: 0, whole: one.all, samples: one.count, share: one.all / all};
      return {own: one.own[node], whole: one.whole[node], samples: one.samples[node], share: one.whole[node] / all};
    });
  }

  // How wide something is: its share, of both sides the mean.
  extent(part, node) {
    const [one, other] = this.sides;
    const of = ({parts, all}) => {
      if (part < 0 || !all) return all ? 1 : 0;
      return (node < 0 ? parts[part].all : parts[part].whole[node]) / all;
    };
    return other ? (of(one) + of(other)) / 2 : of(one);
  }

  // Calls around all tasks that are alike are left out: each the only one of what made it.
  begins(part) {
    let some = this.roots.filter(node => this.extent(part, node) > 0);
    while (some.length === 1 && ['dask', 'standard library'].includes(this.originOf(some[0]))) {
      const own = this.sides.reduce((sum, side) => sum + (side ? side.parts[part].own[some[0]] : 0), 0);
      const next = this.children[some[0]].filter(node => this.extent(part, node) > 0);
      if (own > 0 || !next.length) break;
      some = next;
    }
    return some;
  }

  originOf(node) { return this.told.origins[this.told.frames[this.frame[node]][3]]; }

  nameOf({part, node}) {
    if (part < 0) return this.sides[1] ? `${this.about}${this.names[0]} | ${this.names[1]}` : this.of;
    if (node < 0) return part < APART ? this.told.groups[this.sides[0].parts[part].group][0]
      : `${count(this.functions.length - APART)} more functions`;
    const [name] = this.told.frames[this.frame[node]], place = this.placeOf(node);
    return this.originOf(node) === 'own' && place ? `${name}  ${place}` : name;
  }

  placeOf(node) {
    const [, , file] = this.told.frames[this.frame[node]], line = this.line[node] >> 1;
    return file && line ? `${file}:${line}` : file;
  }

  // Gives a bar for all that is wide enough to be seen, within what is zoomed to.
  layOut() {
    const parts = this.sides[0].parts, rects = [], width = this.canvas.clientWidth || 1;
    const zoom = this.zoomed[this.zoomed.length - 1] || null;
    const add = (part, node, x, wide, depth, above) => {
      const one = {part, node, x, wide, depth, above};
      if (wide * width < NARROW) return null;
      rects.push(one);
      return one;
    };
    const within = (part, nodes, x, scale, depth, above) => {
      const ordered = nodes.map(node => [node, this.extent(part, node)]).filter(([, part]) => part > 0)
        .sort((a, b) => b[1] - a[1]);
      for (const [node, part_] of ordered) {
        const one = add(part, node, x, part_ * scale, depth, above);
        if (one) within(part, this.children[node], x, scale, depth + 1, one);
        x += part_ * scale;
      }
    };
    const extent = zoom ? this.extent(zoom.part, zoom.node) : this.extent(-1, -1);
    if (zoom && !(extent > 0)) { this.zoomed = []; this.layOut(); return; }
    const scale = 1 / (extent || 1);
    let depth = 0, above = null;
    // what lies around is as wide as the whole
    const around = zoom ? this.pathTo(zoom) : [{part: -1, node: -1}];
    for (const one of around) above = add(one.part, one.node, 0, 1, depth++, above);
    if (!zoom || zoom.part < 0) {
      if (this.apart) {
        let x = 0;
        const order = parts.map((_, k) => [k, this.extent(k, -1)]).filter(([, part]) => part > 0).sort((a, b) => b[1] - a[1]);
        for (const [part, wide] of order) {
          const one = add(part, -1, x, wide * scale, depth, above);
          if (one) within(part, this.begins(part), x, scale, depth + 1, one);
          x += wide * scale;
        }
      } else within(0, this.begins(0), 0, scale, depth, above);
    } else within(zoom.part, zoom.node < 0 ? this.begins(zoom.part) : this.children[zoom.node], 0, scale, depth, above);
    this.rects = extent > 0 ? rects : [];
    this.around = around.length;
    this.deep = this.rects.reduce((most, one) => Math.max(most, one.depth + 1), 1);
    if (this.current) this.current = this.rects.find(one => one.part === this.current.part && one.node === this.current.node) || null;
    this.mark();
    $('flame-back').disabled = $('flame-all').disabled = !this.zoomed.length;
  }

  // All that lies around a place, and itself.
  pathTo({part, node}) {
    const found = [{part: -1, node: -1}], begins = part < 0 ? [] : this.begins(part);
    if (part >= 0 && this.apart) found.push({part, node: -1});
    const path = [];
    for (let at = node; at >= 0; at = begins.includes(at) ? -1 : this.parent[at]) path.unshift({part, node: at});
    return [...found, ...path];
  }

  // ------------------------------------------------------------------------------ search

  matches(rect) {
    if (!this.text) return true;
    if (rect.node < 0) return rect.part >= 0 && this.nameOf(rect).toLowerCase().includes(this.text);
    const [name, module, file] = this.told.frames[this.frame[rect.node]];
    return [name, module, file, this.placeOf(rect.node)].some(one => one.toLowerCase().includes(this.text));
  }

  // Marks what is found; its share counts what lies in something found once.
  mark() {
    $('flame-found').textContent = '';
    if (!this.text) return;
    const frames = this.told.frames.map(([name, module, file]) => [name, module, file].some(one => one.toLowerCase().includes(this.text)));
    const zoom = this.zoomed[this.zoomed.length - 1], shares = [0, 0], inside = new Uint8Array(this.size);
    let calls = 0;
    this.sides[0].parts.forEach((one, part) => {
      if (zoom && zoom.part >= 0 && zoom.part !== part) return;
      const whole = this.apart && this.matches({part, node: -1});
      for (let i = 0; i < this.size; i++) {
        const up = this.parent[i];
        const here = !zoom || zoom.node < 0 || i === zoom.node || (up >= 0 && inside[up] & 4);
        const good = frames[this.frame[i]] || this.placeOf(i).toLowerCase().includes(this.text);
        const above = up >= 0 && inside[up] & 1;
        inside[i] = (here ? 4 : 0) | (here && (good || above) ? 1 : 0);
        if (!here || !good || !(this.extent(part, i) > 0)) continue;
        calls++;
        if (!above && !whole) this.values(part, i).forEach((side, k) => { if (side) shares[k] += side.share; });
      }
      if (whole) {
        calls++;
        this.values(part, zoom ? zoom.node : -1).forEach((side, k) => { if (side) shares[k] += side.share; });
      }
    });
    const base = this.values(zoom ? zoom.part : -1, zoom ? zoom.node : -1);
    const text = k => share(shares[k] / (base[k].share || 1));
    this.foundShare = shares[0] / (base[0].share || 1);
    $('flame-found').textContent = !calls ? 'nothing found'
      : `${this.sides[1] ? `${text(0)} | ${text(1)}` : text(0)} in ${count(calls)} call${calls === 1 ? '' : 's'}`;
  }

  // ------------------------------------------------------------------------------ drawing

  colourOf(rect) {
    const [one, other] = this.values(rect.part, rect.node);
    if (!other) return ORIGINS[rect.node < 0 ? 'group' : this.originOf(rect.node)] ? ORIGINS[rect.node < 0 ? 'group' : this.originOf(rect.node)][1] : '#ded9a5';
    const much = Math.min(1, Math.abs(one.share - other.share) / 0.25) ** 0.6;
    const [r, g, b] = one.share >= other.share ? [213, 94, 0] : [0, 114, 178];
    const mix = (full, part) => Math.round(235 + (full - 235) * part * 0.75);
    return `rgb(${mix(r, much)}, ${mix(g, much)}, ${mix(b, much)})`;
  }

  draw() {
    const {canvas} = this, width = canvas.clientWidth;
    if (!width) return;
    const pen = prepared(canvas, width, this.deep * CALL + 2), c = colours();
    this.width = width;
    pen.fillStyle = c.paper;
    pen.fillRect(0, 0, width, this.deep * CALL + 2);
    if (!this.rects.length) {
      pen.fillStyle = c.faint;
      pen.fillText('No samples here.', 8, CALL / 2);
      return;
    }
    const patterns = new Map();
    for (const rect of this.rects) {
      const x = rect.x * width, wide = rect.wide * width, y = rect.depth * CALL;
      const pale = this.text && !this.matches(rect) || rect.depth < this.around - 1;
      const origin = rect.node < 0 ? 'group' : this.originOf(rect.node), kind = (ORIGINS[origin] || ORIGINS[''])[2];
      pen.globalAlpha = pale ? 0.35 : 1;
      pen.fillStyle = this.colourOf(rect);
      // edges at whole pixels of the screen, so that widths are seen as they are
      pen.fillRect(x, y + 1, Math.max(wide, 0.5), CALL - 1);
      if (kind && !this.sides[1] && wide > 3) {
        if (!patterns.has(kind)) patterns.set(kind, hatched(pen, kind));
        pen.fillStyle = patterns.get(kind);
        pen.fillRect(x, y + 1, wide, CALL - 1);
      }
      if (wide > 2) {
        pen.fillStyle = c.paper;
        pen.fillRect(x + wide - 0.75, y + 1, 0.75, CALL - 1);
      }
      pen.globalAlpha = pale ? 0.75 : 1;
      if (wide > 24) {
        pen.fillStyle = pale ? c.ink : '#000000';
        const font = pen.font;
        if (origin === 'own') pen.font = `600 ${font}`;
        fitted(pen, this.labelOf(rect, pen, wide - 8), x + 4, y + 1 + CALL / 2, wide - 8);
        pen.font = font;
      }
      pen.globalAlpha = 1;
      if (this.text && this.matches(rect) && rect.part >= 0) {
        pen.strokeStyle = c.ink;
        pen.lineWidth = 1.5;
        pen.strokeRect(x + 0.75, y + 1.75, Math.max(1, wide - 2), CALL - 2.5);
      }
    }
    if (this.current) {
      const {x, wide, depth} = this.current;
      pen.strokeStyle = c.ink;
      pen.lineWidth = 2.5;
      pen.strokeRect(x * width + 1.25, depth * CALL + 2, Math.max(2, wide * width - 2.5), CALL - 3);
    }
  }

  // Where there is no room for the module, the function alone.
  labelOf(rect, pen, room) {
    const [one, other] = this.values(rect.part, rect.node);
    let name = this.nameOf(rect), before = '';
    if (other && rect.part >= 0) {
      const points = (one.share - other.share) * 100;
      before = `${Math.abs(points) < 0.05 ? '±' : points > 0 ? '+' : '−'}${Math.abs(points).toFixed(Math.abs(points) < 9.95 && Math.abs(points) >= 0.05 ? 1 : 0)}  `;
    }
    if (rect.node >= 0 && pen.measureText(before + name.slice(0, 200)).width > room) {
      [name] = this.told.frames[this.frame[rect.node]];
      if (pen.measureText(before + name.slice(0, 200)).width > room && /^[\w.]+$/.test(name)) name = name.slice(name.lastIndexOf('.') + 1);
    }
    return before + name;
  }

  makeLegend() {
    $('flame-legend').replaceChildren();
    const sign = (text, fill, kind) => {
      const canvas = made('canvas'), pen = (canvas.width = 24, canvas.height = 16, canvas.getContext('2d')), one = made('span');
      pen.fillStyle = fill;
      pen.fillRect(0, 0, 24, 16);
      if (kind) { pen.fillStyle = hatched(pen, kind); pen.fillRect(0, 0, 24, 16); }
      one.append(canvas, text);
      $('flame-legend').append(one);
    };
    if (this.sides[1]) {
      sign(`+ more in ${this.names[0]}`, 'rgb(218, 129, 59)');
      sign(`− more in ${this.names[1]}`, 'rgb(59, 144, 192)');
      $('flame-legend').append(made('span', 'in points of each one’s own time; a bar is as wide as the mean of both shares'));
      return;
    }
    const used = new Set(this.rects.filter(one => one.node >= 0).map(one => this.originOf(one.node)));
    for (const [origin, [text, colour, kind]] of Object.entries(ORIGINS)) if (text && used.has(origin)) sign(text, colour, kind);
  }

  // ------------------------------------------------------------------------------ words

  amountOf(value) { return this.told.unit ? duration(value) : `${count(value)} samples`; }

  // Gives a title and lines of name and value about a bar.
  toldOf(rect) {
    const sides = this.values(rect.part, rect.node), lines = [], {told} = this;
    if (rect.node >= 0) {
      const [, module, file] = told.frames[this.frame[rect.node]], origin = this.originOf(rect.node);
      if (module) lines.push(['module', module]);
      const mostly = this.line[rect.node] & 1 && file ? 'mostly ' : '';
      if (file) lines.push(['at', `${mostly}${this.placeOf(rect.node)}`]);
      lines.push(['origin', (ORIGINS[origin] || ORIGINS[''])[0]]);
    }
    const zoom = this.zoomed[this.zoomed.length - 1], base = zoom && this.values(zoom.part, zoom.node);
    sides.forEach((side, k) => {
      if (!side) return;
      const whose = this.sides[1] ? ` ${this.names[k]}` : '';
      lines.push([`share${whose}`, share(side.share) + (base && base[k].whole ? `, ${share(side.whole / base[k].whole)} of what is shown` : '')]);
      lines.push([`in all${whose}`, this.amountOf(side.whole)]);
      if (rect.node >= 0) lines.push([`in itself${whose}`, this.amountOf(side.own)]);
      if (told.unit) lines.push([`samples${whose}`, count(side.samples)]);
    });
    if (sides[1]) lines.push(['change', `${((sides[0].share - sides[1].share) * 100).toFixed(1)} points`]);
    return {title: this.nameOf(rect), lines};
  }

  say() {
    this.makeLegend();
    const zoom = this.zoomed[this.zoomed.length - 1], [one, other] = this.sides;
    const rect = this.current || (zoom ? {...zoom} : null);
    if (rect) {
      const {title, lines} = this.toldOf(rect);
      $('flame-said').textContent = plain([title, ...lines.map(([name, value]) => `${name} ${value}`)].join(' · '));
      return;
    }
    const sum = side => this.told.unit ? `${this.amountOf(side.all)} in ${count(side.count)} samples` : this.amountOf(side.all);
    $('flame-said').textContent = plain(other ? `${this.names[0]}: ${sum(one)} · ${this.names[1]}: ${sum(other)}`
      : `${sum(one)}. Click a bar to see it alone.`);
  }

  // ------------------------------------------------------------------------------ moves

  zoom(rect) {
    const now = this.zoomed[this.zoomed.length - 1];
    if (rect.part < 0) { if (now) this.whole(); return; }
    if (now && now.part === rect.part && now.node === rect.node) return;
    this.zoomed.push({part: rect.part, node: rect.node});
    this.changed();
    $('flame-frame').scrollTop = 0;
  }

  back() { if (this.zoomed.length) { this.zoomed.pop(); this.changed(); } }
  whole() { this.zoomed = []; this.changed(); }
  changed() { this.layOut(); this.draw(); this.say(); }

  at(event) {
    const box = this.canvas.getBoundingClientRect(), x = (event.clientX - box.left) / box.width, depth = Math.floor((event.clientY - box.top) / CALL);
    return this.rects.find(one => one.depth === depth && one.x <= x && x < one.x + one.wide) || null;
  }

  pick(rect) {
    if (!rect) return;
    this.current = rect;
    const frame = $('flame-frame'), y = rect.depth * CALL;
    if (y < frame.scrollTop) frame.scrollTop = y;
    else if (y + CALL > frame.scrollTop + frame.clientHeight) frame.scrollTop = y + CALL - frame.clientHeight;
    this.draw();
    this.say();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const now = this.current || this.rects[0], {rects} = this;
    if (!now) return;
    const first = !this.current, middle = now.x + now.wide / 2;
    const beside = by => {
      const row = rects.filter(one => one.depth === now.depth).sort((a, b) => a.x - b.x);
      return row[row.indexOf(now) + by];
    };
    const keys = {
      ArrowDown: () => this.pick(first ? now : rects.find(one => one.above === now && one.x <= middle && middle < one.x + one.wide)
        || rects.find(one => one.above === now)),
      ArrowUp: () => this.pick(first ? now : now.above), ArrowLeft: () => this.pick(first ? now : beside(-1)),
      ArrowRight: () => this.pick(first ? now : beside(1)), Home: () => this.pick(rects[0]),
      Enter: () => this.current && this.zoom(now), ' ': () => this.current && this.zoom(now), Backspace: () => this.back(), '0': () => this.whole(),
      Escape: () => {
        this.current = null;
        this.text = $('flame-search').value = '';
        $('flame-card').hidden = true;
        this.changed();
      },
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  showCard(event) {
    const rect = this.at(event), card = $('flame-card');
    card.hidden = !rect;
    if (!rect) return;
    const {title, lines} = this.toldOf(rect), list = made('dl');
    const cutTo = text => text.length > 160 ? `${text.slice(0, 159)}…` : text;
    for (const [name, value] of lines) list.append(made('dt', cutTo(name)), made('dd', cutTo(value)));
    card.replaceChildren(made('b', cutTo(title)), list);
    const {offsetWidth: wide, offsetHeight: high} = card;
    card.style.left = `${Math.max(4, event.clientX + 16 + wide > innerWidth ? event.clientX - wide - 12 : event.clientX + 16)}px`;
    card.style.top = `${Math.max(4, event.clientY + 16 + high > innerHeight ? event.clientY - high - 12 : event.clientY + 16)}px`;
  }

  listen() {
    const {canvas} = this;
    for (const name of ['flame-of', 'flame-on', 'flame-with', 'flame-window', 'flame-idle'])
      $(name).addEventListener('change', () => { this.zoomed = []; this.current = null; this.choose(); });
    $('flame-back').addEventListener('click', () => this.back());
    $('flame-all').addEventListener('click', () => this.whole());
    let waiting = 0;
    const search = () => {
      clearTimeout(waiting);
      this.text = $('flame-search').value.trim().toLowerCase();
      this.mark();
      this.draw();
    };
    $('flame-search').addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
    $('flame-search').addEventListener('keydown', event => {
      if (event.key !== 'Enter' && event.key !== 'Escape') return;
      event.preventDefault();
      if (event.key === 'Escape') $('flame-search').value = '';
      search();
    });
    canvas.addEventListener('click', event => {
      const rect = this.at(event);
      if (!rect) return;
      this.current = null;
      $('flame-card').hidden = true;
      this.zoom(rect);
    });
    canvas.addEventListener('pointermove', event => { if (event.pointerType !== 'touch') this.showCard(event); });
    canvas.addEventListener('pointerleave', () => { $('flame-card').hidden = true; });
    canvas.addEventListener('keydown', event => this.key(event));
    let later = 0;
    redraws.push(() => {
      const seen = this.view(), moved = $('flame-window').checked && !$('flame-window').disabled && seen
        && JSON.stringify(this.binsOf(...seen)) !== this.shownBins;
      if (moved) {
        clearTimeout(later);
        later = setTimeout(() => { this.shownBins = JSON.stringify(this.binsOf(...this.view())); this.choose(); }, 60);
      } else { if (canvas.clientWidth !== this.width) this.layOut(); this.draw(); }
    });
  }
}

if ($('flame')) timelineDrawn.then(() => unpacked('stack-data')).then(([{stacks, columns}, planes]) => {
  $('flame').flame = new Flame(stacks, planes); // for tests, and for the console
  $('flame').dataset.ready = 'yes';
}).catch(error => {
  $('flame-said').textContent = `The flame graph cannot be drawn here: ${error}. A browser of 2023 or newer can.`;
  throw error;
});
