// Coverage: what share of each column of pixels spans fill, exactly, however narrow they are.

// A span of plane p fills planes[p * columns + column]. Spans of one lane stand in order of start and
// do not overlap. Blocks of 16 and of 256 spans that lie in one column are added as one.
const BLOCK = 16, LARGE = 256;

// Planes of colours: of functions, of all other functions, of copies and of fills; then the same, pale.
const COPY = COLOURED + 1, FILL = COLOURED + 2, SHADES = COLOURED + 3, PLANES = 2 * SHADES;

// Sums of the lengths of each block of spans, by plane.
function blockSums(start, stop, planes, size) {
  const sums = new Float64Array(Math.ceil(start.length / size) * PLANES);
  for (let i = 0; i < start.length; i++)
    sums[Math.floor(i / size) * PLANES + planes[i]] += stop[i] - start[i];
  return sums;
}

// The first span from `low` on that ends after a time.
function firstAfter(stop, low, high, time) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (stop[middle] > time) high = middle; else low = middle + 1;
  }
  return low;
}

// The first span from `low` on that begins at a time or later.
function firstFrom(start, low, high, time) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (start[middle] >= time) high = middle; else low = middle + 1;
  }
  return low;
}

class Spans {
  constructor(start, stop, planes) {
    this.start = start;
    this.stop = stop;
    this.setPlanes(planes);
  }

  // Says in which plane each is; sums are made when they are needed.
  setPlanes(planes) {
    this.planes = planes;
    this.small = this.large = null;
  }

  visible(low, high, from, to) {
    const first = firstAfter(this.stop, low, high, from);
    return [first, firstFrom(this.start, first, high, to)];
  }

  // Adds what the spans [first, last) fill of each column of a window.
  fill(filled, columns, first, last, from, to) {
    const {start, stop, planes} = this, scale = columns / (to - from);
    const blocks = last - first > 16 * columns;
    if (blocks && !this.small) {
      this.small = blockSums(start, stop, planes, BLOCK);
      this.large = blockSums(start, stop, planes, LARGE);
    }
    for (let i = first; i < last; i++) {
      let a = (start[i] - from) * scale, b = (stop[i] - from) * scale;
      if (a < 0) a = 0;
      const column = a | 0;
      if (blocks && (i & BLOCK - 1) === 0 && i + BLOCK <= last && start[i] >= from && ((stop[i + BLOCK - 1] - from) * scale | 0) === column) {
        const wide = (i & LARGE - 1) === 0 && i + LARGE <= last && ((stop[i + LARGE - 1] - from) * scale | 0) === column;
        const size = wide ? LARGE : BLOCK, sums = wide ? this.large : this.small, at = i / size * PLANES;
        for (let p = 0; p < PLANES; p++) filled[p * columns + column] += sums[at + p] * scale;
        i += size - 1;
        continue;
      }
      if (b > columns) b = columns;
      const end = b | 0, base = planes[i] * columns;
      if (column === end) filled[base + column] += b - a;
      else if (column < columns) {
        filled[base + column] += column + 1 - a;
        if (end - column > 1) for (let c = base + column + 1; c < base + end; c++) filled[c] += 1;
        if (end < columns) filled[base + end] += b - end;
      }
    }
  }
}

// Gives spans that cover what others do, of which several may run at once; in order of start.
function united(start, stop) {
  const begins = [], ends = [];
  for (let i = 0, k = -1; i < start.length; i++)
    if (k >= 0 && start[i] <= ends[k]) { if (stop[i] > ends[k]) ends[k] = stop[i]; } else { begins.push(start[i]); ends.push(stop[i]); k++; }
  return new Spans(Float64Array.from(begins), Float64Array.from(ends), new Uint8Array(begins.length));
}

// Puts spans that overlap into lanes, in order of start: each into the first that is free, or into
// none, which is the lane after the last, where there are as many as there may be.
function stacked(start, stop, most) {
  const ends = [], lane = new Uint16Array(start.length);
  let left = 0;
  for (let i = 0; i < start.length; i++) {
    let k = ends.findIndex(end => end <= start[i]);
    if (k < 0) k = ends.length;
    lane[i] = k;
    if (k < most) ends[k] = stop[i]; else left++;
  }
  return [lane, ends.length, left];
}

// Adds to the columns of a window what bins of equal width fill: their mean over the column.
function fillFromBins(filled, columns, bins, count, planes, begin, end, from, to) {
  const width = (end - begin) / count, step = (to - from) / columns;
  for (let c = 0; c < columns; c++) {
    const a = Math.max(0, (from + c * step - begin) / width), b = Math.min(count, (from + (c + 1) * step - begin) / width);
    for (let p = 0; p < planes && b > a; p++) {
      let sum = 0;
      for (let i = a | 0; i < b; i++) sum += bins[p * count + i] * (Math.min(i + 1, b) - Math.max(i, a));
      filled[p * columns + c] += sum * width / step;
    }
  }
}

// ------------------------------------------------------------------------------------ pixels

// The pixels of a canvas: what a share fills of a column is as high as that share, to a part of a pixel.
class Pixels {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.image = new ImageData(Math.max(1, width), Math.max(1, height));
    this.words = new Uint32Array(this.image.data.buffer);
  }

  rectangle(left, top, right, bottom, colour) {
    const l = Math.max(0, left), r = Math.min(this.width, right);
    for (let y = Math.max(0, top); y < Math.min(this.height, bottom); y++)
      if (r > l) this.words.fill(colour, y * this.width + l, y * this.width + r);
  }

  // Puts a colour onto a part of a pixel that is still of the ground's.
  blend(at, colour, part, ground) {
    const under = this.words[at];
    const r = (under & 255) + ((colour & 255) - (ground & 255)) * part;
    const g = (under >>> 8 & 255) + ((colour >>> 8 & 255) - (ground >>> 8 & 255)) * part;
    const b = (under >>> 16 & 255) + ((colour >>> 16 & 255) - (ground >>> 16 & 255)) * part;
    this.words[at] = 0xff000000 | (b < 0 ? 0 : b > 255 ? 255 : b + 0.5) << 16
      | (g < 0 ? 0 : g > 255 ? 255 : g + 0.5) << 8 | (r < 0 ? 0 : r > 255 ? 255 : r + 0.5);
  }

  // Stacks the shares of each column upon each other, from the bottom of [top, bottom) on.
  stack(filled, columns, shades, ground, left, top, bottom, scale = 1) {
    const high = bottom - top, {width, height, words} = this;
    if (bottom <= 0 || top >= height) return;
    for (let c = 0; c < columns; c++) {
      let at = 0;
      for (let p = 0; p < shades.length; p++) {
        const part = filled[p * columns + c];
        if (part <= 0) continue;
        const next = Math.min(high, at + part * scale * high);
        let k = at | 0, end = next | 0;
        if (k === end || (end === high && k === high)) {
          if (k < high) this.over(left + c, bottom - 1 - k, shades[p], next - at, ground);
        } else {
          if (at > k) { this.over(left + c, bottom - 1 - k, shades[p], k + 1 - at, ground); k++; }
          let y = bottom - 1 - k;
          const stopAt = Math.max(-1, bottom - 1 - end);
          if (y >= height) y = height - 1;
          for (let place = y * width + left + c; y > stopAt; y--, place -= width) words[place] = shades[p];
          if (next > end && end < high) this.over(left + c, bottom - 1 - end, shades[p], next - end, ground);
        }
        at = next;
        if (at >= high) break;
      }
    }
  }

  over(x, y, colour, part, ground) {
    if (y >= 0 && y < this.height) this.blend(y * this.width + x, colour, part, ground);
  }
}

// A colour of CSS, as #rrggbb, in a word of an image.
function word(colour) {
  const value = parseInt(colour.slice(1), 16);
  return (0xff000000 | (value & 255) << 16 | (value & 0xff00) | value >>> 16) >>> 0;
}

function mixed(one, other, part) {
  let found = 0xff000000;
  for (let shift = 0; shift < 24; shift += 8) {
    const a = one >>> shift & 255, b = other >>> shift & 255;
    found |= Math.round(a + (b - a) * part) << shift;
  }
  return found >>> 0;
}
