'use strict';
// Sorts the tables, and shows the rest of their rows.
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
})();
