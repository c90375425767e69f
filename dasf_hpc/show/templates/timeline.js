'use strict';
// Draws the timeline and the curves, switches the theme.
(() => {
const $ = id => document.getElementById(id);
const DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
const SHARE = Object.fromEntries([...DIGITS].map((letter, i) => [letter, i / 63]));
const COLOURED = 7;
const AXIS = 24, GAP = 4;

// ------------------------------------------------------------------------------ units

function digits(value, places) {
  return Number(value.toPrecision(places)).toLocaleString('en-GB', {maximumFractionDigits: 9});
}

function duration(us) {
  for (const [unit, size] of [['s', 1e6], ['ms', 1e3]])
    if (Math.abs(us) >= size) return `${digits(us / size, 4)} ${unit}`;
  return `${digits(us, 4)} us`;
}

// A moment, as exact as a step of the axis asks for.
function moment(us, step) {
  const places = Math.min(6, Math.max(0, Math.ceil(-Math.log10(step / 1e6) - 1e-9)));
  return `${(us / 1e6).toFixed(places)} s`;
}

function amount(value, unit) {
  if (value === null || value === undefined) return '–';
  if (unit.startsWith('bytes')) {
    const rest = unit.slice(5);
    for (const [name, size] of [['TB', 1e12], ['GB', 1e9], ['MB', 1e6], ['kB', 1e3]])
      if (Math.abs(value) >= size) return `${digits(value / size, 3)} ${name}${rest}`;
    return `${digits(value, 3)} B${rest}`;
  }
  return `${digits(value, 3)} ${unit}`.trim();
}

function niceStep(range, count) {
  const rough = Math.max(range / count, 1e-9), size = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map(f => f * size).find(s => s >= rough);
}

// ------------------------------------------------------------------------------ theme

const root = document.documentElement;
const redraws = [];
const redraw = () => redraws.forEach(draw => draw());
$('theme').addEventListener('click', () => {
  const dark = root.dataset.theme ? root.dataset.theme === 'dark'
    : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  redraw();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
let before = null;
addEventListener('beforeprint', () => {
  before = {theme: root.dataset.theme, closed: [...document.querySelectorAll('details:not([open])')]};
  root.dataset.theme = 'light';
  before.closed.forEach(one => { one.open = true; });
  redraw();
});
addEventListener('afterprint', () => {
  if (!before) return;
  if (before.theme) root.dataset.theme = before.theme; else delete root.dataset.theme;
  before.closed.forEach(one => { one.open = false; });
  before = null;
  redraw();
});

function colours() {
  const style = getComputedStyle(root);
  const get = name => style.getPropertyValue(`--${name}`).trim();
  return {
    of: [...Array(COLOURED + 1).keys()].map(i => get(`f${i}`)),
    curve: ['c0', 'f5', 'f2', 'f0', 'f6', 'f7'].map(get),
    paper: get('paper'), sheet: get('sheet'), ink: get('ink'), faint: get('faint'),
    line: get('line'), idle: get('idle'), focus: get('focus'), serious: get('serious'),
  };
}

function prepared(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext('2d');
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  pen.textBaseline = 'middle';
  return pen;
}

// ------------------------------------------------------------------------------ data

async function unpacked() {
  const packed = Uint8Array.from(atob($('data').textContent.trim()), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).json();
}

unpacked().then(start).catch(error => {
  $('picked').textContent = `The timeline cannot be drawn here: ${error}. A browser of 2023 or newer can.`;
  throw error;
});

function start([line, curves]) {
  const exact = line.exact, length = Math.max(1, line.length);
  const view = {from: 0, to: length};
  let alone = null, picked = -1;

  function show(from, to) {
    const size = Math.min(length, Math.max(1, to - from));
    view.from = Math.min(Math.max(0, from), length - size);
    view.to = view.from + size;
    redraw();
  }
  const move = share => { const s = (view.to - view.from) * share; show(view.from + s, view.to + s); };
  const zoom = (factor, at = (view.from + view.to) / 2) =>
    show(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const doing = {
    left: () => move(-0.3), right: () => move(0.3), in: () => zoom(0.5), out: () => zoom(2),
    all: () => show(0, length),
  };
  for (const button of document.querySelectorAll('.controls button'))
    button.addEventListener('click', doing[button.dataset.do]);

  drawTimeline();
  drawCurves();
  redraw();
  addEventListener('resize', redraw);
  document.body.dataset.ready = 'yes';

  // ---------------------------------------------------------------------------- timeline

  function drawTimeline() {
    const canvas = $('chart'), frame = $('lanes');
    const rows = line.path && line.path.start && line.path.start.length
      ? [{name: 'critical path', kind: 'path', lanes: 1}, ...line.rows] : line.rows;
    const first = rows.length - line.rows.length;
    const lanes = rows.reduce((sum, row) => sum + row.lanes, 0);
    const tall = lanes <= 16 ? 18 : lanes <= 60 ? 11 : lanes <= 300 ? 7 : 4;
    let y = AXIS;
    for (const row of rows) {
      row.height = Math.max(row.kind === 'gpu' ? 24 : 10, row.lanes * tall);
      row.lane = row.height / row.lanes;
      row.y = y;
      y += row.height + GAP;
    }
    const height = y + 4;
    const byRow = rows.map(() => []);
    exact.start.forEach((_, i) => byRow[exact.row[i] + first].push(i));
    let gutter = 120, width = 0, drag = null;

    const x = us => gutter + (us - view.from) / (view.to - view.from) * (width - gutter);
    const us = px => view.from + (px - gutter) / (width - gutter) * (view.to - view.from);
    const shade = (c, f) => c.of[Math.min(f, COLOURED)];
    const shown = f => alone === null || alone === Math.min(f, COLOURED);

    const legend = $('legend');
    const names = line.functions.slice(0, COLOURED);
    if (line.functions.length > COLOURED) names.push(`${line.functions.length - COLOURED} others`);
    names.forEach((name, i) => {
      const button = document.createElement('button');
      const key = document.createElement('span');
      button.type = 'button';
      key.className = `key f${i}`;
      button.append(key, name);
      button.setAttribute('aria-pressed', 'false');
      button.addEventListener('click', () => {
        alone = alone === i ? null : i;
        [...legend.children].forEach((one, k) => one.setAttribute('aria-pressed', String(k === alone)));
        redraw();
      });
      legend.append(button);
    });

    function draw() {
      width = frame.clientWidth;
      const c = colours(), pen = prepared(canvas, width, height);
      gutter = Math.min(width * 0.3, 24 + Math.max(60, ...rows.slice(0, 200).map(r => pen.measureText(r.name).width)));
      pen.fillStyle = c.paper;
      pen.fillRect(0, 0, width, height);
      rows.forEach((row, number) => {
        pen.fillStyle = c.idle;
        pen.fillRect(gutter, row.y, width - gutter, row.height);
        if (row.kind === 'gpu') drawGpu(pen, c, row);
        else if (row.kind === 'path') drawPath(pen, c, row);
        else {
          if (row.most) drawBins(pen, c, row);
          drawExact(pen, c, row, byRow[number]);
        }
      });
      // names stand over what was drawn left of the window
      pen.fillStyle = c.paper;
      pen.fillRect(0, 0, gutter, height);
      pen.fillStyle = c.ink;
      rows.forEach(row => fitted(pen, row.name, 6, row.y + row.height / 2, gutter - 12));
      drawAxis(pen, c, frame.scrollTop);
      if (drag && Math.abs(drag.to - drag.from) > 3) {
        pen.fillStyle = c.focus;
        pen.globalAlpha = 0.25;
        pen.fillRect(Math.min(drag.from, drag.to), 0, Math.abs(drag.to - drag.from), height);
        pen.globalAlpha = 1;
      }
      const step = (view.to - view.from) / 1000;
      $('window').textContent =
        `${moment(view.from, step)} to ${moment(view.to, step)} (${duration(view.to - view.from)})`;
    }

    function fitted(pen, text, left, middle, room) {
      let shown = text;
      if (pen.measureText(text).width > room) {
        let size = text.length;
        while (size > 1 && pen.measureText(`${text.slice(0, size)}…`).width > room) size--;
        shown = `${text.slice(0, size)}…`;
      }
      pen.fillText(shown, left, middle);
    }

    function drawAxis(pen, c, top) {
      const step = niceStep(view.to - view.from, Math.max(2, (width - gutter) / 110));
      pen.fillStyle = c.paper;
      pen.fillRect(0, top, width, AXIS - 4);
      pen.strokeStyle = c.line;
      pen.lineWidth = 1;
      pen.fillStyle = c.faint;
      for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
        const at = Math.round(x(t)) + 0.5, text = moment(t, step);
        pen.globalAlpha = 0.6;
        pen.beginPath();
        pen.moveTo(at, top + AXIS - 6);
        pen.lineTo(at, height);
        pen.stroke();
        pen.globalAlpha = 1;
        const room = pen.measureText(text).width;
        pen.fillText(text, Math.min(at - room / 2, width - room - 2), top + 10);
      }
    }

    function drawExact(pen, c, row, items) {
      pen.textBaseline = 'middle';
      for (const i of items) {
        const begin = exact.start[i], end = begin + exact.took[i];
        if (end < view.from || begin > view.to) continue;
        const left = Math.max(gutter, x(begin)), right = Math.min(width, x(end));
        const wide = Math.max(right - left, 0.8), top = row.y + exact.lane[i] * row.lane;
        const f = exact.function[i];
        pen.globalAlpha = shown(f) ? 1 : 0.12;
        pen.fillStyle = shade(c, f);
        pen.fillRect(left, top, wide > 3 ? wide - 0.5 : wide, row.lane - (row.lane > 6 ? 1 : 0));
        if (exact.states[exact.state[i]] !== 'memory' && wide > 2) {
          pen.strokeStyle = c.serious;
          pen.lineWidth = 2;
          pen.setLineDash([4, 2]);
          pen.strokeRect(left + 1, top + 1, wide - 2, row.lane - 3);
          pen.setLineDash([]);
        }
        if (i === picked) {
          pen.strokeStyle = c.ink;
          pen.lineWidth = 2;
          pen.strokeRect(left, top, wide, row.lane - 1);
        }
        if (wide > 46 && row.lane > 10) {
          pen.fillStyle = f === 4 ? '#fff' : '#000';
          fitted(pen, line.functions[f], left + 4, top + row.lane / 2, wide - 8);
        }
      }
      pen.globalAlpha = 1;
    }

    // Of the bins under a pixel the mean is drawn, in the colour of the busiest.
    function drawBins(pen, c, row) {
      const per = length / line.bins;
      for (let px = Math.floor(gutter); px < width; px++) {
        const from = Math.floor(us(px) / per), to = Math.max(from + 1, Math.floor(us(px + 1) / per));
        let sum = 0, most = 0, busiest = -1;
        for (let i = Math.max(0, from); i < to && i < line.bins; i++) {
          const share = SHARE[row.busy[i]];
          sum += share;
          if (share > busiest) { busiest = share; most = Number(row.most[i]); }
        }
        if (!sum) continue;
        const high = row.height * Math.min(1, sum / (to - from));
        pen.globalAlpha = shown(most) ? 0.75 : 0.12;
        pen.fillStyle = c.of[most];
        pen.fillRect(px, row.y + row.height - high, 1, high);
      }
      pen.globalAlpha = 1;
    }

    function drawGpu(pen, c, row) {
      const bins = row.busy.length, per = length / bins;
      pen.fillStyle = c.faint; // no function's colour
      for (let i = Math.max(0, Math.floor(view.from / per)); i < bins && i * per < view.to; i++) {
        const share = SHARE[row.busy[i]];
        if (!share) continue;
        const left = Math.max(gutter, x(i * per)), right = Math.min(width, x((i + 1) * per));
        pen.fillRect(left, row.y + row.height * (1 - share), right - left + 0.3, row.height * share);
      }
    }

    function drawPath(pen, c, row) {
      line.path.start.forEach((begin, i) => {
        const end = begin + line.path.took[i];
        if (end < view.from || begin > view.to) return;
        const left = Math.max(gutter, x(begin)), right = Math.min(width, x(end));
        const f = line.functions.indexOf(line.path.function[i]);
        const task = f >= 0;
        pen.fillStyle = task ? shade(c, f) : c.faint;
        pen.globalAlpha = !task ? 0.5 : shown(f) ? 1 : 0.12;
        pen.fillRect(left, task ? row.y : row.y + row.height * 0.35, Math.max(right - left, 0.8),
          task ? row.height : row.height * 0.3);
      });
      pen.globalAlpha = 1;
    }

    // -------------------------------------------------------------------------- what is there

    function at(px, py) {
      const row = rows.findIndex(r => py >= r.y && py < r.y + r.height + GAP);
      if (row < 0 || px < gutter) return null;
      const time = us(px), lane = Math.floor((py - rows[row].y) / rows[row].lane);
      const slack = (view.to - view.from) / (width - gutter) * 2;
      let found = -1;
      for (const i of byRow[row])
        if (exact.lane[i] === lane && exact.start[i] - slack <= time
            && time <= exact.start[i] + exact.took[i] + slack) found = i;
      return {row, time, found};
    }

    function told(place) {
      const row = rows[place.row];
      if (place.found >= 0) return execution(place.found);
      if (row.kind === 'gpu') {
        const share = SHARE[row.busy[Math.floor(place.time / length * row.busy.length)]];
        return `${row.name}: utilisation ${share === undefined ? 'not sampled' : `${Math.round(share * 100)} %`} at ${moment(place.time, 1e3)}`;
      }
      if (row.kind === 'path') {
        const i = line.path.start.findIndex((s, k) => s <= place.time && place.time <= s + line.path.took[k]);
        return i < 0 ? row.name : `critical path: ${line.path.kind[i]} ${line.path.function[i]} on ${line.path.worker[i] || '?'}, ${duration(line.path.took[i])}`;
      }
      if (row.most) {
        const i = Math.min(line.bins - 1, Math.floor(place.time / length * line.bins));
        const name = line.functions[Number(row.most[i])] || '';
        const other = Number(row.most[i]) === COLOURED;
        return `${row.name}, ${duration(length / line.bins)} from ${moment(i * length / line.bins, 1e3)}: `
          + `${Math.round(SHARE[row.busy[i]] * 100)} % busy${row.busy[i] === 'A' ? '' : `, mostly ${other ? 'other functions' : name}`}`;
      }
      return `${row.name}: no task at ${moment(place.time, 1e3)}`;
    }

    function execution(i) {
      const parts = [line.functions[exact.function[i]], duration(exact.took[i]),
        `from ${moment(exact.start[i], 1)}`, `on ${line.rows[exact.row[i]].name}`];
      if (exact.states[exact.state[i]] !== 'memory') parts.push(exact.states[exact.state[i]] || '?');
      if (exact.nbytes[i] >= 0) parts.push(`result ${amount(exact.nbytes[i], 'bytes')}`);
      if (exact.key) parts.push(`key ${exact.key[i]}`);
      parts.push(`row ${exact.task[i]} of table tasks`);
      return parts.join(' · ');
    }

    function pick(i) {
      picked = i;
      $('picked').textContent = execution(i);
      const begin = exact.start[i], end = begin + exact.took[i];
      if (begin < view.from || end > view.to) {
        const size = Math.max(view.to - view.from, exact.took[i] * 1.2);
        show((begin + end) / 2 - size / 2, (begin + end) / 2 + size / 2);
      } else redraw();
    }

    const place = event => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener('pointerdown', event => {
      if (event.button !== 0) return;
      const [px] = place(event);
      if (px < gutter) return;
      drag = {from: px, to: px};
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', event => {
      const [px, py] = place(event);
      if (drag) {
        drag.to = Math.max(gutter, Math.min(width, px));
        draw();
        return;
      }
      const there = at(px, py);
      canvas.title = there ? told(there) : '';
    });
    canvas.addEventListener('pointerup', event => {
      if (!drag) return;
      const [from, to] = [Math.min(drag.from, drag.to), Math.max(drag.from, drag.to)];
      drag = null;
      if (to - from > 3) { show(us(from), us(to)); return; }
      const there = at(...place(event));
      picked = there ? there.found : -1;
      $('picked').textContent = there ? told(there) : '';
      redraw();
    });
    canvas.addEventListener('pointercancel', () => { drag = null; draw(); });
    canvas.addEventListener('dblclick', doing.all);
    canvas.addEventListener('wheel', event => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, us(place(event)[0]));
    }, {passive: false});
    canvas.addEventListener('keydown', event => {
      const keys = {ArrowLeft: doing.left, ArrowRight: doing.right, '+': doing.in, '=': doing.in,
        '-': doing.out, '0': doing.all, Home: doing.all,
        n: () => { const i = exact.start.findIndex((s, k) => k > picked && s >= view.from); if (i >= 0) pick(i); },
        p: () => { if (picked > 0) pick(picked - 1); }};
      if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        keys[event.key]();
      }
    });
    frame.addEventListener('scroll', draw);
    redraws.push(draw);
  }

  // ---------------------------------------------------------------------------- curves

  function drawCurves() {
    const dashes = [[], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3]];
    for (const chart of curves) {
      const figure = document.createElement('figure');
      const caption = document.createElement('figcaption');
      const canvas = document.createElement('canvas');
      caption.append(chart.title);
      const readings = chart.curves.map((curve, i) => {
        const name = document.createElement('span');
        const key = document.createElement('span');
        name.className = 'name';
        key.className = `key c${i}`;
        name.append(key, curve.name);
        caption.append(name);
        const reading = document.createElement('span');
        name.append(reading);
        return reading;
      });
      const values = chart.curves.flatMap(c => c.values).concat(chart.band ? chart.band[1] : [])
        .filter(v => v !== null);
      const top = chart.unit === '%' ? Math.max(100, ...values) : Math.max(1e-9, chart.top || 0, ...values);
      canvas.setAttribute('role', 'img');
      canvas.setAttribute('aria-label', `${chart.title}: at most ${amount(values.reduce((a, b) => Math.max(a, b), 0), chart.unit)}`);
      figure.append(caption, canvas);
      $('charts').append(figure);

      const left = 62;
      let width = 0;
      const draw = () => {
        width = canvas.clientWidth;
        const height = 150, bottom = height - 20, c = colours(), pen = prepared(canvas, width, height);
        const x = us => left + (us - view.from) / (view.to - view.from) * (width - left - 6);
        const y = value => bottom - value / top * (bottom - 8);
        pen.fillStyle = c.paper;
        pen.fillRect(0, 0, width, height);
        pen.strokeStyle = c.line;
        pen.fillStyle = c.faint;
        pen.lineWidth = 1;
        const step = niceStep(top, 4);
        pen.textAlign = 'right';
        for (let v = 0; v <= top * 1.001; v += step) {
          pen.beginPath();
          pen.moveTo(left, Math.round(y(v)) + 0.5);
          pen.lineTo(width, Math.round(y(v)) + 0.5);
          pen.stroke();
          pen.fillText(amount(v, chart.unit), left - 6, y(v));
        }
        pen.textAlign = 'center';
        const ticks = niceStep(view.to - view.from, Math.max(2, (width - left) / 70));
        for (let t = Math.ceil(view.from / ticks) * ticks; t <= view.to; t += ticks)
          pen.fillText(moment(t, ticks), Math.min(Math.max(x(t), left + 16), width - 26), height - 8);
        pen.save();
        pen.beginPath();
        pen.rect(left, 0, width - left, bottom + 2);
        pen.clip();
        const middle = (i, count) => x((i + 0.5) / count * length);
        if (chart.band) {
          const [least, most] = chart.band, known = most.map((v, i) => i).filter(i => most[i] !== null);
          pen.beginPath();
          known.forEach(i => pen.lineTo(middle(i, most.length), y(most[i])));
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
      };
      canvas.addEventListener('pointermove', event => {
        const px = event.clientX - canvas.getBoundingClientRect().left;
        const share = (view.from + (px - left) / (width - left - 6) * (view.to - view.from)) / length;
        chart.curves.forEach((curve, i) => {
          readings[i].textContent = share < 0 || share >= 1 ? ''
            : ` ${amount(curve.values[Math.floor(share * curve.values.length)], chart.unit)}`;
        });
      });
      canvas.addEventListener('pointerleave', () => readings.forEach(r => { r.textContent = ''; }));
      redraws.push(draw);
    }
  }
}
})();
