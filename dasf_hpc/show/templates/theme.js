// The theme, print, and how a canvas is made ready: what all that is drawn has in common.

const $ = id => document.getElementById(id);
const COLOURED = 7;
const root = document.documentElement;
const redraws = [];
let palette = null, printing = false;

function redraw() {
  palette = null;
  redraws.forEach(draw => draw());
}

function colours() {
  if (palette) return palette;
  const style = getComputedStyle(root);
  const get = name => style.getPropertyValue(`--${name}`).trim();
  palette = {
    of: [...Array(COLOURED + 1).keys()].map(i => get(`f${i}`)),
    curve: ['c0', 'f5', 'f2', 'f0', 'f6', 'f7'].map(get),
    marks: ['f1', 'f0', 'f6'].map(get),
    paper: get('paper'), sheet: get('sheet'), ink: get('ink'), faint: get('faint'),
    line: get('line'), idle: get('idle'), idleLine: get('idle-line'), focus: get('focus'), serious: get('serious'),
  };
  return palette;
}

if ($('theme')) $('theme').addEventListener('click', () => {
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
  printing = true;
  redraw();
});
addEventListener('afterprint', () => {
  if (!before) return;
  if (before.theme) root.dataset.theme = before.theme; else delete root.dataset.theme;
  before.closed.forEach(one => { one.open = false; });
  before = null;
  printing = false;
  redraw();
});
addEventListener('resize', redraw);

function prepared(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext('2d');
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.globalAlpha = 1;
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  pen.textBaseline = 'middle';
  pen.textAlign = 'left';
  return pen;
}

// The step of an axis of time: as small as the room that its labels need allows.
function axisStep(pen, {from, to}, width, least) {
  let step = niceStep(to - from, Math.max(2, width / least));
  // the smaller the step, the longer the labels
  const room = Math.max(...[from, to].map(us => pen.measureText(moment(us, step)).width)) + 16;
  if (room > least) step = niceStep(to - from, Math.max(1, width / room));
  return step;
}

// What moves or hides other text, as marks that turn its direction do, stands as a sign.
const plain = text => text.replace(/[\p{Cc}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, '\ufffd');

// Writes a text into so much room, cut if it must be.
function fitted(pen, text, left, middle, room) {
  text = plain(text.slice(0, 500));
  let shown = text;
  if (pen.measureText(text).width > room) {
    let [low, high] = [0, text.length];
    while (low < high) {
      const size = (low + high + 1) >> 1;
      if (pen.measureText(`${text.slice(0, size)}…`).width > room) high = size - 1; else low = size;
    }
    if (!low) return;
    shown = `${text.slice(0, low)}…`;
  }
  pen.fillText(shown, left, middle);
}

function made(tag, text = '', name = '') {
  const one = document.createElement(tag);
  if (text) one.textContent = plain(text);
  if (name) one.className = name;
  return one;
}
