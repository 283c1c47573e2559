"use strict";
// What other seeds would have made of the curves of any plane that a reader chooses: the steps of report/curves.py, in the
// browser, because the planes of all pairs of axes would be a page too large to mail. A test compares the two.
const proluBands = (() => {
  const GRID = 64, REPLICATES = 200, INTERVAL = [5, 95], WIDEST_GAP = Math.log(6), SURE = 0.95;

  function generator(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let bits = Math.imul(state ^ (state >>> 15), 1 | state);
      bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
      return ((bits ^ (bits >>> 14)) >>> 0) / 4294967296;
    };
  }

  // Straight between neighbours, dominated settings left out, NaN beyond the runs and over wide gaps.
  function curve(means, grid, sign) {
    const points = [];
    let best = Infinity;
    for (const point of [...means].sort((a, b) => a[0] - b[0])) {
      if (sign * point[1] < best) points.push(point);
      best = Math.min(best, sign * point[1]);
    }
    let left = 0;
    return grid.map((at) => {
      if (at < points[0][0] - 1e-9 || at > points[points.length - 1][0] + 1e-9) return NaN;
      while (left + 2 < points.length && points[left + 1][0] < at) left += 1;
      const [low, high] = [points[left], points[Math.min(left + 1, points.length - 1)]];
      const gap = high[0] - low[0];
      if (gap > WIDEST_GAP && at > low[0] + 1e-8 && at < high[0] - 1e-8) return NaN;
      const share = gap > 0 ? Math.min(1, Math.max(0, (at - low[0]) / gap)) : 0;
      return low[1] + share * (high[1] - low[1]);
    });
  }

  function percentile(sorted, percent) {
    const at = ((sorted.length - 1) * percent) / 100, low = Math.floor(at);
    return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
  }

  function mean(points) {
    return [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  }

  // rows: finished runs; returns the intervals as rows, and on which share of x one architecture is best beyond noise.
  return function bands(rows, x, y, { larger }) {
    const usable = rows.filter((row) => row[x] > 0 && row[y] !== undefined);
    const spread = usable.map((row) => Math.log(row[x]));
    const [from, to] = [Math.min(...spread), Math.max(...spread)];
    if (usable.length < 2 || from === to) return { rows: [], sure: null };
    const logarithmic = usable.every((row) => row[y] > 0);
    const grid = Array.from({ length: GRID }, (_, i) => from + ((to - from) * i) / (GRID - 1));
    const settings = new Map();
    for (const row of usable) {
      const own = settings.get(row.architecture) || settings.set(row.architecture, new Map()).get(row.architecture);
      const seeds = own.get(row.group) || own.set(row.group, []).get(row.group);
      seeds.push([Math.log(row[x]), logarithmic ? Math.log(row[y]) : row[y]]);
    }
    const random = generator(1), sign = larger ? -1 : 1, out = [], names = [...settings.keys()];
    const estimate = [], replicates = [];
    for (const name of names) {
      const own = [...settings.get(name).values()];
      estimate.push(curve(own.map(mean), grid, sign));
      replicates.push(Array.from({ length: REPLICATES }, () =>
        curve(own.map((seeds) => mean(seeds.map(() => seeds[Math.floor(random() * seeds.length)]))), grid, sign)));
    }
    const value = logarithmic ? Math.exp : (number) => number;
    names.forEach((name, index) => grid.forEach((at, place) => {
      const drawn = replicates[index].map((one) => one[place]).filter(Number.isFinite).sort((a, b) => a - b);
      if (drawn.length < REPLICATES / 2) return;
      const [low, high] = INTERVAL.map((percent) => value(percentile(drawn, percent)));
      out.push({ plane: `${x}|${y}`, architecture: name, at: Math.exp(at), low, high });
    }));
    let compared = 0, sure = 0;
    grid.forEach((_, place) => {
      if (estimate.filter((one) => Number.isFinite(one[place])).length < 2) return;
      const wins = names.map(() => 0);
      let known = 0;
      for (let replicate = 0; replicate < REPLICATES; replicate += 1) {
        const values = replicates.map((own) => sign * own[replicate][place]);
        const lowest = Math.min(...values.filter(Number.isFinite));
        if (lowest === Infinity) continue;
        wins[values.indexOf(lowest)] += 1;
        known += 1;
      }
      compared += 1;
      if (known && Math.max(...wins) >= SURE * known) sure += 1;
    });
    return { rows: out, sure: compared ? sure / compared : null };
  };
})();
