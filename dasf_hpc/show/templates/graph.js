// The task graph by function: what is told of a box or a line, and which lines are a box's.

function makeGraph() {
  const svg = document.querySelector('svg.layers'), card = $('graph-card');
  if (!svg) return;
  const lines = [...svg.querySelectorAll('.line')].map(line => ({line, ends: line.dataset.ends.split(' ')}));
  const most = 12;

  function tell(one, left, top) {
    const [title, ...rest] = one.dataset.card.split('\n');
    const list = made('ul');
    rest.slice(0, most).forEach(text => list.append(made('li', text)));
    if (rest.length > most) list.append(made('li', `and ${rest.length - most} more`));
    card.replaceChildren(made('b', title), list);
    card.hidden = false;
    card.style.left = `${Math.max(4, Math.min(left + 14, innerWidth - card.offsetWidth - 8))}px`;
    card.style.top = `${Math.max(4, top + 14 + card.offsetHeight > innerHeight ? top - card.offsetHeight - 10 : top + 14)}px`;
    const box = one.dataset.box;
    svg.classList.toggle('looking', box !== undefined);
    lines.forEach(({line, ends}) => line.classList.toggle('seen', ends.includes(box)));
  }

  function beside(one) {
    const {left, bottom} = one.getBoundingClientRect();
    tell(one, left, bottom - 8);
  }

  function hide() {
    card.hidden = true;
    svg.classList.remove('looking');
  }

  for (const one of svg.querySelectorAll('[data-card]')) {
    one.addEventListener('pointermove', event => tell(one, event.clientX, event.clientY));
    one.addEventListener('pointerleave', hide);
    one.addEventListener('focus', () => beside(one));
    one.addEventListener('blur', hide);
    one.addEventListener('keydown', event => { if (event.key === 'Escape') hide(); });
  }
  // what is focused may come into sight by scrolling
  addEventListener('scroll', () => {
    const one = document.activeElement;
    if (one && one.dataset.card && svg.contains(one)) beside(one); else hide();
  }, {passive: true, capture: true});
}
