// The charts of a trend: which run a point is, under the pointer and by the arrow keys.

const told = JSON.parse($('data').textContent);
const card = $('card');
let shown = null;

function hide() {
  card.hidden = true;
  if (shown) shown.setAttribute('cx', -9);
  shown = null;
}

// Shows the card of a series' point, beside the point itself.
function show(chart, place) {
  const [which, at, values] = told.series[Number(chart.dataset.series)];
  const [label, date, count, run] = told.points[which][at[place]];
  hide();
  const point = chart.querySelectorAll('.points circle')[place];
  shown = chart.querySelector('.here');
  for (const name of ['cx', 'cy']) shown.setAttribute(name, point.getAttribute(name));
  chart.dataset.place = place;
  card.replaceChildren(
    made('p', values[place], 'value'),
    made('p', [label, date].filter(Boolean).join(' · ')),
    made('p', count > 1 ? `${run} and ${count - 1} more runs: their median` : run));
  card.hidden = false;
  const box = point.getBoundingClientRect(), own = card.getBoundingClientRect();
  const left = Math.min(box.right + 10, innerWidth - own.width - 4);
  const above = box.top - own.height - 10;
  card.style.left = `${Math.max(4, left)}px`;
  card.style.top = `${above > 4 ? above : box.bottom + 10}px`;
}

for (const chart of document.querySelectorAll('svg[data-series]')) {
  const points = [...chart.querySelectorAll('.points circle')];
  const xs = points.map(one => Number(one.getAttribute('cx')));
  chart.addEventListener('pointermove', event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    let nearest = 0;
    xs.forEach((one, i) => { if (Math.abs(one - x) < Math.abs(xs[nearest] - x)) nearest = i; });
    show(chart, nearest);
  });
  chart.addEventListener('pointerleave', () => { if (document.activeElement !== chart) hide(); });
  chart.addEventListener('focus', () => {
    if (chart.matches(':focus-visible')) show(chart, Number(chart.dataset.place ?? xs.length - 1));
  });
  chart.addEventListener('blur', hide);
  chart.addEventListener('keydown', event => {
    const now = Number(chart.dataset.place ?? xs.length - 1);
    const next = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: xs.length - 1}[event.key];
    if (event.key === 'Escape') hide();
    if (next === undefined) return;
    event.preventDefault();
    show(chart, Math.max(0, Math.min(xs.length - 1, next)));
  });
}
addEventListener('scroll', () => { if (shown && document.activeElement !== shown.closest('svg')) hide(); }, {passive: true});
document.body.dataset.ready = 'yes';
