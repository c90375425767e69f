'use strict';
// Sorts the tables, shows the rest of their rows, opens what a link leads to.
(() => {
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const fold = () => [...body.rows].forEach((row, i) =>
    row.classList.toggle('beyond', i >= Number(table.dataset.seen)));
  fold();
  const more = table.parentElement.nextElementSibling;
  const unfold = more && more.querySelector('.unfold');
  if (unfold) unfold.addEventListener('click', () => {
    const folded = table.classList.toggle('folded');
    unfold.textContent = folded ? `Show all ${body.rows.length} rows` : 'Show fewer';
  });
  heads.forEach((head, column) => head.firstElementChild.addEventListener('click', () => {
    const number = head.classList.contains('number');
    // numbers begin with the largest, names with the first
    const before = head.getAttribute('aria-sort');
    const down = before ? before === 'ascending' : number;
    const key = row => {
      const cell = row.cells[column];
      return number ? parseFloat(cell.dataset.order) : cell.textContent.trim();
    };
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
    body.append(...rows.map(([, row]) => row));
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    fold();
  }));
}

// What a link leads to may lie in something closed: that opens, and a finding's evidence with it.
function reveal() {
  let name = location.hash.slice(1);
  try { name = decodeURIComponent(name); } catch { /* as it stands */ }
  const target = name.includes('=') ? null : document.getElementById(name);
  if (!target) return;
  for (let one = target; one; one = one.parentElement) if (one.tagName === 'DETAILS') one.open = true;
  const evidence = target.classList.contains('finding') && target.querySelector('details');
  if (evidence) evidence.open = true;
  target.scrollIntoView();
}
addEventListener('hashchange', () => {
  if (!(history.state && history.state.view)) reveal(); // back where one was, nothing moves
});
reveal();

// The same place once more is no change of the address.
document.addEventListener('click', event => {
  const link = event.target.closest('a[href^="#"]');
  if (link && location.hash === link.getAttribute('href')) {
    history.replaceState(null, '');
    dispatchEvent(new HashChangeEvent('hashchange'));
  }
});

// Where a table, or the task graph, goes on beyond its right edge, that is said.
const said = frame => {
  const left = frame.scrollWidth - frame.clientWidth, there = left - frame.scrollLeft > 2;
  frame.classList.toggle('goes-on', there);
  frame.previousElementSibling.hidden = left <= 2;
  frame.previousElementSibling.classList.toggle('at-end', !there);
};
const sizes = new ResizeObserver(entries => entries.forEach(entry => said(entry.target)));
for (const frame of document.querySelectorAll('.scroll, #graph .pan')) {
  const hint = document.createElement('p');
  hint.className = 'more-columns';
  hint.textContent = frame.matches('.scroll') ? 'more columns →' : 'more to the right →';
  hint.hidden = true;
  frame.before(hint);
  frame.addEventListener('scroll', () => said(frame), {passive: true});
  sizes.observe(frame);
}
})();
