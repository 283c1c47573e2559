"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const hidden = {};
  const views = [];
  const runRows = new Map([...document.querySelectorAll("tr[data-run]")].map((row) => [row.dataset.run, row]));
  const options = { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "svg", ast: true };

  // Every plot gets rows of its own: Vega leaves marks on them.
  function rowsOf({ length, columns }) {
    const rows = Array.from({ length }, () => ({}));
    for (const [key, column] of Object.entries(columns)) {
      rows.forEach((row, index) => {
        const value = Array.isArray(column) ? column[index] : column.words[column.at[index]];
        if (value !== null) row[key] = value;
      });
    }
    return rows;
  }

  async function draw(figure, spec, own = {}) {
    const place = figure.querySelector(".chart");
    const before = views.findIndex((entry) => entry.figure === figure);
    if (before >= 0) views.splice(before, 1)[0].result.finalize();
    const text = JSON.stringify(spec);
    const names = Object.keys(DATA.datasets).filter((name) => text.includes(`{"name":"${name}"}`));
    const datasets = Object.fromEntries(names.map((name) => [name, own[name] || rowsOf(DATA.datasets[name])]));
    const full = { ...spec, config: DATA.config, datasets: { ...(spec.datasets || {}), ...datasets } };
    const result = await vegaEmbed(place, full, { ...options, downloadFileName: figure.id });
    result.view.addEventListener("mouseover", (event, item) => mark(item && item.datum && item.datum.run_id));
    result.view.addEventListener("mouseout", () => mark(null));
    views.push({ figure, result });
    await result.view.signal("hidden", { ...hidden }).runAsync();
    figure.dataset.drawn = "true";
  }

  function mark(run) {
    document.querySelectorAll("tr.hot").forEach((row) => row.classList.remove("hot"));
    const row = run && runRows.get(run);
    if (row) row.classList.add("hot");
  }

  // The plot whose axes can be chosen.
  const chosen = { x: document.getElementById("choose-x"), y: document.getElementById("choose-y") };
  const logs = { x: document.getElementById("log-x"), y: document.getElementById("log-y") };

  function spans(key) {
    const values = DATA.datasets.runs.columns[key].filter((value) => value !== null);
    return { low: Math.min(...values), high: Math.max(...values) };
  }

  function logTicks({ low, high }) {
    const digits = high / low < 15 ? [1, 1.5, 2, 3, 5, 7] : high / low < 500 ? [1, 2, 5] : [1];
    const values = Array.from({ length: 19 }, (_, index) => digits.map((digit) => Number(`${digit}e${index - 9}`))).flat();
    return values.filter((value) => low * 0.95 <= value && value <= high * 1.05);
  }

  function setScales(node, kinds, channel) {
    if (Array.isArray(node)) return node.map((child) => setScales(child, kinds, channel));
    if (node === null || typeof node !== "object") return node;
    const copy = {};
    for (const [key, value] of Object.entries(node)) {
      if (key === "scale" && kinds[channel]) {
        copy[key] = kinds[channel].log ? { type: "log", nice: false, padding: 12 } : { type: "linear", zero: false, padding: 12 };
      } else if (key === "tooltip" && Array.isArray(value)) {
        copy[key] = value.filter((line, index) => value.findIndex((other) => other.field === line.field) === index);
      } else if (key === "axis" && kinds[channel]) {
        const { values, ...rest } = value;
        copy[key] = kinds[channel].log ? { ...rest, values: kinds[channel].ticks } : rest;
      } else copy[key] = setScales(value, kinds, key);
    }
    return copy;
  }

  async function drawMain(figure, template, keepScales) {
    const axis = { x: DATA.axes[chosen.x.value], y: DATA.axes[chosen.y.value] };
    const kinds = {};
    for (const side of ["x", "y"]) {
      const span = spans(chosen[side].value);
      const positive = span.low > 0;
      logs[side].disabled = !positive;
      if (!keepScales) logs[side].checked = positive && span.high / span.low >= DATA.log_span;
      kinds[side] = { log: logs[side].checked && positive, ticks: positive ? logTicks(span) : [] };
    }
    const plane = `${chosen.x.value}|${chosen.y.value}`;
    const noise = DATA.seeds > 1 ? proluBands(rowsOf(DATA.datasets.runs), chosen.x.value, chosen.y.value, axis.y) : null;
    figure.noise = noise;
    const own = noise && !DATA.banded.includes(plane) ? { bands: noise.rows } : {};
    const banded = own.bands ? own.bands.length > 0 : DATA.banded.includes(plane);
    const layers = template.layer.filter((layer) => banded || !(layer.data && layer.data.name === "bands"));
    let text = JSON.stringify({ ...template, layer: layers });
    for (const side of ["x", "y"]) {
      text = text.replaceAll(`${side}_field__`, chosen[side].value).replaceAll(`${side}_title__`, axis[side].title)
        .replaceAll(`${side}_short__`, axis[side].short).replaceAll(`${side}_sign__`, axis[side].larger ? "-1" : "1");
    }
    await draw(figure, setScales(JSON.parse(text), kinds, null), own);
    document.getElementById("main-title").textContent = `${axis.y.short} against ${axis.x.short}`;
    document.getElementById("noise").textContent = inWords(noise, axis);
  }

  function inWords(noise, axis) {
    if (noise === null) return "One seed per setting: how much of a difference is noise is not known.";
    if (noise.sure === null) return "No two architectures share a range here.";
    const share = Math.round(100 * noise.sure);
    const rest = share === 100 ? "nowhere are the best two within noise" : "elsewhere the best ones are within noise of each other";
    return `At equal ${axis.x.short}, one architecture has the best ${axis.y.short} beyond noise on ${share} % of the range; ${rest}.`;
  }

  // The legend, which holds for all plots at once.
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", async () => {
      const on = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!on));
      if (on) hidden[button.dataset.architecture] = true;
      else delete hidden[button.dataset.architecture];
      await Promise.all(views.map(({ result }) => result.view.signal("hidden", { ...hidden }).runAsync()));
    });
  }

  // Sorting; what is missing stays last.
  for (const button of document.querySelectorAll(".runs thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = [...head.parentNode.children].indexOf(head);
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = head.closest("table").tBodies[0];
      const keyed = [...body.rows].map((row) => [row.cells[column].dataset.v, row]);
      const numeric = head.dataset.kind === "number";
      keyed.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = numeric ? Number(a) - Number(b) : a.localeCompare(b);
        return down ? -order : order;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  }

  async function start() {
    for (const figure of document.querySelectorAll("figure[id]")) {
      const spec = DATA.specs[figure.id];
      if (figure.id !== DATA.main) {
        await draw(figure, spec);
        continue;
      }
      await drawMain(figure, spec, false);
      // One drawing after the other: a reader may be quicker than a plot.
      let drawing = Promise.resolve();
      const redraw = (keepScales) => () => {
        drawing = drawing.then(() => drawMain(figure, spec, keepScales));
      };
      for (const control of Object.values(chosen)) control.addEventListener("change", redraw(false));
      for (const control of Object.values(logs)) control.addEventListener("change", redraw(true));
    }
    document.documentElement.dataset.ready = "true";
  }
  start().catch((error) => {
    console.error(error);
    document.getElementById("trouble").hidden = false;
  });
})();
