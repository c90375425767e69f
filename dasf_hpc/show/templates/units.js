// Units: as the rest of the page writes them, three digits and the unit that suits.

function digits(value, places = 3) {
  const most = 10 ** places - 0.5; // from here on it is a whole number
  return Number(Math.abs(value) < most ? value.toPrecision(places) : value.toFixed(0)).toLocaleString('en-GB', {maximumFractionDigits: 9});
}

function inUnits(value, units) {
  const [unit, size] = units.find(([, one]) => Math.abs(value) >= one * 0.9995) || units[units.length - 1];
  // of the smallest there are no parts
  return `${digits(unit === units[units.length - 1][0] ? Math.round(value / size) : value / size)} ${unit}`;
}

// Of us.
function duration(us) {
  return inUnits(us, [['s', 1e6], ['ms', 1e3], ['us', 1], ['ns', 1e-3]]);
}

// A moment, as exact as a step of the axis asks for.
function moment(us, step) {
  const places = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step / 1e6) - 1e-9)));
  const text = (us / 1e6).toFixed(places);
  const [whole, rest] = (Number(text) === 0 ? text.replace('-', '') : text).split('.');
  return `${whole.replace(/\B(?=(\d{3})+$)/g, ',')}${rest ? `.${rest}` : ''} s`;
}

function amount(value, unit) {
  if (value === null || value === undefined) return '–';
  if (unit.startsWith('bytes'))
    return inUnits(value, [['PB', 1e15], ['TB', 1e12], ['GB', 1e9], ['MB', 1e6], ['kB', 1e3], ['B', 1]]) + unit.slice(5);
  return `${digits(value)} ${unit}`.trim();
}

function share(part) {
  const percent = part * 100;
  if (percent > 0 && percent < 0.05) return `${digits(percent, 1)} %`; // some is not none
  return `${percent.toFixed(percent < 9.95 ? 1 : 0)} %`;
}

const count = number => number.toLocaleString('en-GB');

function niceStep(range, parts) {
  const rough = Math.max(range / parts, 1e-9), size = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map(f => f * size).find(s => s >= rough * 0.9999);
}
