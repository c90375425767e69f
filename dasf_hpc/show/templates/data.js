// The data: unpacks what `page_data.py` packed, and gives it as arrays. Times are us from time 0.

// The shortest stretch of time that is shown, us.
const LEAST = 0.05;

const DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
const SHARE = Object.fromEntries([...DIGITS].map((letter, i) => [letter, i / 63]));

async function unpacked(name = 'data') {
  const text = atob($(name).textContent.trim()), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const content = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = new DataView(content.buffer).getUint32(0, true);
  const described = JSON.parse(new TextDecoder().decode(content.subarray(4, 4 + size)));
  let place = 4 + size;
  const planes = described.columns.map(([length, width]) => {
    const one = {length, width, bytes: content.subarray(place, place + length * width)};
    place += length * width;
    return one;
  });
  return [described, planes];
}

// Puts the bytes of each value of a column together.
function numbers({length, width, bytes}, Kind = width > 4 ? Float64Array : Uint32Array) {
  const found = new Kind(length);
  for (let plane = width - 1; plane >= 0; plane--) {
    const first = plane * length;
    for (let i = 0; i < length; i++) found[i] = found[i] * 256 + bytes[first + i];
  }
  return found;
}

const unsigned = value => value % 2 ? -(value + 1) / 2 : value / 2;

// Sums up steps; in each group they begin anew.
function summed(steps, groups = [[0, steps.length]], signed = true) {
  const found = new Float64Array(steps.length);
  for (const [from, to] of groups)
    for (let i = from, at = 0; i < to; i++) found[i] = at += signed ? unsigned(steps[i]) : steps[i];
  return found;
}

// Sizes with three digits; -1: none.
function size(code) {
  if (code <= 1000) return code - 1;
  return (100 + (code - 1001) % 900) * 10 ** (1 + Math.floor((code - 1001) / 900));
}

// Gives the rows with their lanes, and what is in these.
function readTimeline(line, columns) {
  const {begin, resolution} = line, from = begin / 1000, step = resolution / 1000;
  const column = (number, kind) => numbers(columns[number], kind);
  const lanes = [];
  let first = 0;
  line.rows.forEach((row, number) => {
    row.number = number;
    row.own = row.lanes.map((length, lane) => {
      const one = {row: number, lane, from: first, to: first += length};
      lanes.push(one);
      return one;
    });
    row.tracks = [];
  });
  const told = line.tasks, groups = lanes.map(one => [one.from, one.to]);
  const start = summed(column(told.start), groups, false), took = column(told.took);
  const stop = new Float64Array(start.length);
  for (let i = 0; i < start.length; i++) {
    stop[i] = from + (start[i] + took[i]) * step;
    start[i] = from + start[i] * step;
  }
  const tasks = {
    count: told.count, start, stop, fn: column(told.function),
    row: summed(column(told.task), groups), nbytes: column(told.nbytes),
    failed: [], bad: new Set(), state: new Map(), keys: null,
  };
  const states = column(told.state), exceptions = column(told.exception);
  summed(column(told.failed)).forEach((task, i) => {
    const state = told.states[states[i] - 1] || 'not known';
    tasks.state.set(task, {state, exception: told.exceptions[exceptions[i]]});
    if (state === 'rescheduled') return; // it gave its place up, as shuffles' tasks do
    tasks.failed.push(task);
    tasks.bad.add(task);
  });
  if (told.keys !== undefined) tasks.keys = new TextDecoder().decode(columns[told.keys].bytes).split('\0');
  tasks.edges = {all: told.all_edges, task: new Float64Array(0), input: new Float64Array(0)};
  if (told.edges) {
    const task = summed(column(told.edges[0])), apart = column(told.edges[1]);
    tasks.edges = {all: told.all_edges, task, input: task.map((one, i) => one + unsigned(apart[i]))};
  }
  const tracks = line.tracks.tracks.map(track => {
    const begins = summed(column(track.start)), lasts = column(track.took);
    const one = {
      ...track, count: begins.length, start: begins, stop: new Float64Array(begins.length),
      name: column(track.name), sort: track.sort === undefined ? null : column(track.sort),
      nbytes: track.nbytes === undefined ? null : column(track.nbytes),
      page: track.page === undefined ? null : summed(column(track.page)),
    };
    for (let i = 0; i < begins.length; i++) {
      one.stop[i] = from + (begins[i] + lasts[i]) * step;
      begins[i] = from + begins[i] * step;
    }
    line.rows[track.row].tracks.push(one);
    return one;
  });
  for (const row of line.rows)
    if (row.bins !== undefined) row.binned = column(row.bins, Float32Array).map(v => (v / 255) ** 2);
  return {
    begin: begin / 1000, end: Math.max(line.end / 1000, begin / 1000 + LEAST), work: Math.max(line.work / 1000, LEAST),
    rows: line.rows, lanes, tasks, tracks, names: line.tracks.names, functions: line.functions,
    bins: line.bins, whole: told.whole, path: line.path,
  };
}
