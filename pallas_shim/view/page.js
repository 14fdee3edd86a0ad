"use strict";
// Draws the trace that stands in the page as JSON; data.py says what its fields mean. The charts
// are Plotly's, which the page holds compressed.
(async function () {
  const trace = JSON.parse(document.getElementById("trace").textContent);
  if (!trace.kernels.length) { document.body.dataset.ready = "yes"; return; }
  const $ = (id) => document.getElementById(id);
  const COLOURS = { block: "#111111", reads: "#1769c4", writes: "#d9570b", copied: "#2c8a4b" };
  const PLOT = { displayModeBar: false, responsive: true };
  const state = { kernel: 0, run: 0, cell: 0, mode: "visits" };

  async function loadPlotly() {
    const packed = Uint8Array.from(atob($("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // -- text ------------------------------------------------------------------------------------

  function bytes(n) {
    for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
      if (n >= size) return `${+(n / size).toPrecision(3)} ${unit}`;
    }
    return `${n} B`;
  }
  const list = (numbers) => `(${numbers.join(", ")}${numbers.length === 1 ? "," : ""})`;
  const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  function svg(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  // -- cells -----------------------------------------------------------------------------------

  const kernel = () => trace.kernels[state.kernel];
  const run = () => kernel().runs[state.run];
  function indicesOf(cell, grid) {
    const indices = [];
    for (const size of [...grid].reverse()) { indices.unshift(cell % size); cell = Math.floor(cell / size); }
    return indices;
  }
  function cellOf(indices, grid) {
    return indices.reduce((cell, index, axis) => cell * grid[axis] + index, 0);
  }

  function drawSliders() {
    const { grid, recorded, cells } = run();
    const rows = [];
    function slider(id, name, size, text) {
      const label = element("label");
      const input = element("input", undefined,
        { type: "range", min: 0, max: size - 1, step: 1, id, "aria-label": name });
      label.append(element("span", name), input, element("output", text));
      rows.push(label);
      return input;
    }
    if (kernel().runs.length > 1) {
      const input = slider("run", "program", kernel().runs.length, "");
      input.addEventListener("input", () => { state.run = +input.value; state.cell = 0; draw(); });
    }
    slider("order", "visit", recorded, "").addEventListener("input", (event) => {
      state.cell = +event.target.value; moved();
    });
    if (grid.length > 1) {
      grid.forEach((size, axis) => {
        const input = slider(`axis-${axis}`, kernel().axes[axis] || `axis ${axis}`, size, "");
        input.disabled = size === 1;
        input.addEventListener("input", () => {
          const indices = indicesOf(state.cell, grid);
          indices[axis] = +input.value;
          state.cell = Math.min(cellOf(indices, grid), recorded - 1);
          moved();
        });
      });
    }
    $("sliders").replaceChildren(...rows);
    if (recorded < cells) $("order").title = `${recorded} of ${cells} cells are recorded`;
  }

  function moveSliders() {
    const { grid, recorded, program } = run();
    const set = (id, value, text) => {
      const input = $(id);
      if (!input) return;
      input.value = value;
      input.parentElement.querySelector("output").textContent = text;
    };
    set("run", state.run, program);
    set("order", state.cell, `${state.cell + 1} of ${recorded}`);
    indicesOf(state.cell, grid).forEach((index, axis) => {
      set(`axis-${axis}`, index, `${index} of 0–${grid[axis] - 1}`);
    });
  }

  // The cells of the grid's last two axes, shaded by the bytes that are moved for them.
  function drawGrid() {
    const { grid, recorded } = run();
    const indices = indicesOf(state.cell, grid);
    const rows = grid.length > 1 ? grid[grid.length - 2] : 1;
    const columns = grid.length ? grid[grid.length - 1] : 1;
    if (rows * columns < 2 || rows > 32 || columns > 64) { $("grid").replaceChildren(); return; }
    const side = Math.max(8, Math.min(26, Math.floor(380 / columns), Math.floor(150 / rows)));
    const most = Math.max(1, ...moves());
    const picture = svg("svg", { width: columns * side + 2, height: rows * side + 2 });
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const there = indices.slice(0, -2);
        if (grid.length > 1) there.push(r);
        there.push(c);
        const cell = cellOf(there, grid);
        const seen = cell < recorded;
        const share = seen ? moves()[cell] / most : 0;
        const rect = svg("rect", { x: c * side + 1, y: r * side + 1, width: side, height: side,
          fill: seen ? `hsl(212 ${25 + 50 * share}% ${92 - 45 * share}%)` : "#eee" });
        const title = svg("title", {});
        title.textContent = `cell ${list(there)}` +
          (seen ? `: ${bytes(moves()[cell])} moved` : ": not recorded");
        rect.append(title);
        if (seen) rect.addEventListener("click", () => { state.cell = cell; moved(); });
        picture.append(rect);
      }
    }
    const [x, y] = [indices[indices.length - 1] * side + 1,
      (grid.length > 1 ? indices[indices.length - 2] : 0) * side + 1];
    picture.append(svg("rect", { x, y, width: side, height: side, class: "now" }));
    const names = kernel().axes.slice(-2).join(" down, ");
    $("grid").replaceChildren(picture, element("small",
      `${names}${grid.length > 1 ? " across" : ""}; darker: more bytes moved`));
  }
  function moves() {
    const r = run();
    r.moves ||= r.fetched.map((n, cell) => n + r.written_back[cell] + r.copied[cell]);
    return r.moves;
  }

  // -- operands --------------------------------------------------------------------------------

  // An array is shown as a table: its last dimension across, all others down. The rectangles of
  // a part of it, as [row, row end, column, column end].
  function rectangles(low, high, shape) {
    if (!shape.length) return [[0, 1, 0, 1]];
    const last = shape.length - 1;
    let bands = [[0, 1]];
    for (let axis = 0; axis < last; axis++) {
      const [a, b] = [Math.max(0, low[axis]), Math.min(shape[axis], high[axis])];
      if (b <= a) return [];
      const next = [];
      for (const [from, to] of bands) {
        const whole = a === 0 && b === shape[axis];
        if (whole) { next.push([from * shape[axis], to * shape[axis]]); continue; }
        for (let row = from; row < to && next.length < 256; row++) {
          next.push([row * shape[axis] + a, row * shape[axis] + b]);
        }
      }
      bands = next;
    }
    const [c, d] = [Math.max(0, low[last]), Math.min(shape[last], high[last])];
    return d <= c ? [] : bands.map(([a, b]) => [a, b, c, d]);
  }

  const endOf = (start, operand) => start.map((s, axis) => s + (operand.block || operand.shape)[axis]);

  // The position of the first cell that has each part of an operand, in bins.
  function visits(operand) {
    if (operand.visits) return operand.visits;
    const { rows, columns, reads } = operand.heat;
    const [down, across] = [reads.length, reads[0].length];
    const table = reads.map((row) => row.map(() => null));
    const first = new Map();
    operand.block_of_cell.forEach((block, cell) => { if (!first.has(block)) first.set(block, cell); });
    for (const [block, cell] of [...first].reverse()) {
      const start = operand.blocks[block];
      for (const [a, b, c, d] of rectangles(start, endOf(start, operand), operand.shape)) {
        for (let y = Math.floor(a * down / rows); y < Math.ceil(b * down / rows); y++) {
          for (let x = Math.floor(c * across / columns); x < Math.ceil(d * across / columns); x++) {
            table[y][x] = cell + 1;
          }
        }
      }
    }
    return operand.visits = table;
  }

  function shown(operand) {
    let mode = state.mode;
    if (mode === "visits" && operand.blocks.length < 2) mode = "reads";
    if (mode === "values" && !operand.heat.values) mode = "reads";
    const z = mode === "visits" ? visits(operand) : operand.heat[mode];
    const numbers = z.flat().filter((n) => n !== null);
    const low = numbers.reduce((a, b) => Math.min(a, b), Infinity);
    const high = numbers.reduce((a, b) => Math.max(a, b), -Infinity);
    const title = { visits: "first<br>visit", reads: "reads", writes: "writes", values: "mean" }[mode];
    const scale = mode === "values" && low < 0 && high > 0
      ? { colorscale: "RdBu", reversescale: true, zmid: 0 }
      : mode === "values" ? { colorscale: "Viridis" }
      : { colorscale: [[0, "#f6f6f4"], [0.5, "#c3c2bb"], [1, "#6f6d66"]],
          zmin: Math.min(low, mode === "visits" ? 1 : 0), zmax: Math.max(high, 1) };
    const step = mode === "values" ? undefined : Math.max(1, Math.ceil((scale.zmax - scale.zmin) / 5));
    return { z, mode, title, scale, step };
  }

  function facts(operand) {
    const lines = [];
    const type = operand.dtype === "semaphore" ? "semaphore" : operand.dtype;
    const cut = operand.blocks.length && product(operand.block) < product(operand.shape);
    lines.push(`${operand.role}, ${type}[${operand.shape.join(", ")}]` +
      (cut ? ` in blocks of [${operand.block.join(", ")}]` : "") +
      (operand.space === "default" ? "" : `, ${operand.space} memory`));
    const warnings = [];
    const c = operand.coverage;
    if (c) {
      const total = product(operand.shape);
      const part = (n) => `${n.toLocaleString()} elements (${+(100 * n / total).toPrecision(2)}%)`;
      const read = [`${operand.blocks.length.toLocaleString()} distinct blocks`];
      if (c.never === 0 && c.overlapped === 0) read.push("cover it all, none overlaps");
      if (c.never === null) read.push("too many to count overlaps");
      lines.push(read.join(", "));
      if (c.revisited) lines.push(`${c.revisited} blocks serve several cells` +
        (c.returning ? `, ${c.returning} come back after others` : ""));
      if (c.never) warnings.push(`no block has ${part(c.never)}`);
      if (c.overlapped) warnings.push(`different blocks share ${part(c.overlapped)}`);
      if (c.partly) warnings.push(`${c.partly} blocks stick out of the array`);
      if (c.outside) warnings.push(`${c.outside} blocks lie outside the array`);
      if (c.returning && operand.role.includes("output")) {
        warnings.push("output blocks come back: a TPU does not read them again");
      }
    }
    if (operand.heat && operand.heat.not_finite) {
      warnings.push(`${operand.heat.not_finite.toLocaleString()} elements are NaN or infinite`);
    }
    return [lines, warnings];
  }

  function drawOperands() {
    const cards = run().operands.map((operand, position) => {
      const card = element("div", undefined, { class: "card", "data-operand": operand.name });
      card.append(element("h2", operand.name));
      const [lines, warnings] = facts(operand);
      lines.forEach((text) => card.append(element("p", text)));
      warnings.forEach((text) => card.append(element("p", `⚠ ${text}`, { class: "warn" })));
      if (operand.heat && operand.heat.reads.length && operand.heat.reads[0].length) {
        card.append(element("div", undefined, { class: "plot", id: `operand-${position}` }));
      }
      card.append(element("p", "", { class: "now" }));
      return card;
    });
    $("operands").replaceChildren(...cards);
    run().operands.forEach((operand, position) => {
      const place = $(`operand-${position}`);
      if (place) drawOperand(place, operand, position);
    });
  }

  function drawOperand(place, operand, position) {
    const { rows, columns, reads } = operand.heat;
    const { z, mode, title, scale, step } = shown(operand);
    const line = rows === 1;
    const flat = operand.shape.length > 2;
    Plotly.react(place, [{
      type: "heatmap", z, ...scale, hoverongaps: false,
      x0: columns / reads[0].length / 2, dx: columns / reads[0].length,
      y0: rows / reads.length / 2, dy: rows / reads.length,
      colorbar: { title: { text: title, font: { size: 11 } }, thickness: 10, len: 1, dtick: step, tickfont: { size: 10 } },
      hovertemplate: `${line ? "" : "row %{y:.0f}, "}column %{x:.0f}<br>${mode}: %{z}<extra></extra>`,
    }], {
      height: line ? 140 : 200, margin: { l: line ? 12 : 48, r: 8, t: 8, b: 36 },
      xaxis: { range: [0, columns], title: { text: operand.shape.length ? "last dimension (elements)" : "", font: { size: 11 }, standoff: 4 }, tickfont: { size: 10 } },
      yaxis: { range: [rows, 0], visible: !line, title: { text: flat ? "other dimensions" : "rows (elements)", font: { size: 11 }, standoff: 4 }, tickfont: { size: 10 } },
      shapes: shapes(operand, position),
    }, PLOT);
  }

  const accesses = () => run().patterns[run().pattern_of_cell[state.cell]] || [];

  function startNow(operand) {
    return operand.blocks.length
      ? operand.blocks[operand.block_of_cell[state.cell]]
      : operand.shape.map(() => 0);
  }

  function shapes(operand, position) {
    const start = startNow(operand);
    const found = [];
    const seen = new Set();
    const add = (low, high, colour, filled, width) => {
      for (const [a, b, c, d] of rectangles(low, high, operand.shape)) {
        const place = `${a} ${b} ${c} ${d}`;
        if (seen.has(colour + place)) continue;
        const fill = filled && !seen.has(place) ? colour + "70" : "rgba(0,0,0,0)";
        seen.add(colour + place);
        if (filled) seen.add(place);
        found.push({ type: "rect", x0: c, x1: d, y0: a, y1: b,
          line: { color: colour, width }, fillcolor: fill });
      }
    };
    // The widest outline is drawn first, so that all stay visible where they lie on one another.
    if (operand.blocks.length) add(start, endOf(start, operand), COLOURS.block, false, 7);
    for (const [kind, width] of [["reads", 4], ["writes", 2]]) {
      for (const access of accesses()) {
        if (access.operand !== position || access.kind !== kind) continue;
        add(access.low.map((n, axis) => n + start[axis]),
          access.high.map((n, axis) => n + start[axis]), COLOURS[kind], true, width);
      }
    }
    return found;
  }

  function moveOperands() {
    run().operands.forEach((operand, position) => {
      const place = $(`operand-${position}`);
      if (place) Plotly.relayout(place, { shapes: shapes(operand, position) });
      const text = $("operands").children[position].querySelector(".now");
      const start = startNow(operand);
      const mine = accesses().filter((access) => access.operand === position);
      const did = ["reads", "writes"].map((kind) => {
        const all = mine.filter((access) => access.kind === kind);
        const total = all.reduce((sum, access) => sum + access.nbytes, 0);
        return all.length ? `${kind} ${bytes(total)}` : "";
      }).filter(Boolean);
      const block = operand.blocks.length && product(operand.block) < product(operand.shape)
        ? `block ${list(start.map((s, a) => `${s}:${s + operand.block[a]}`))}` : "";
      text.textContent = [block, ...did].filter(Boolean).join(", ") || "not touched in this cell";
    });
  }

  // -- source ----------------------------------------------------------------------------------

  function drawLines() {
    const rows = [];
    let before = null;
    kernel().lines.forEach((line, position) => {
      if (before && (before.file !== line.file || before.number + 1 !== line.number)) {
        const row = element("tr", undefined, { class: "gap" });
        row.append(element("td", "…", { class: "number" }),
          element("td", before.file === line.file ? "" : line.file));
        rows.push(row);
      }
      const row = element("tr", undefined, { id: `line-${position}` });
      const text = element("td", line.text);
      text.append(element("div", undefined, { class: "did" }));
      row.append(element("td", line.number, { class: "number" }), text);
      rows.push(row);
      before = line;
    });
    $("lines").replaceChildren(...rows);
    $("file").textContent = kernel().lines.length ? kernel().lines[0].file : "is not known";
  }

  function moveLines() {
    kernel().lines.forEach((_, position) => {
      const row = $(`line-${position}`);
      row.className = "";
      row.querySelector(".did").replaceChildren();
    });
    for (const access of accesses()) {
      if (access.line === null) continue;
      const row = $(`line-${access.line}`);
      if (row.className !== "writes") row.className = access.kind;
      const name = run().operands[access.operand].name;
      row.querySelector(".did").append(element("span",
        `${access.kind} ${name}${access.count > 1 ? ` ${access.count}×` : ""} ${bytes(access.nbytes)}`,
        { class: access.kind === "reads" ? "r" : "w" }));
    }
  }

  // -- bytes and copies ------------------------------------------------------------------------

  function drawBytes() {
    const r = run();
    const series = [["fetched", "fetched by the pipeline", COLOURS.reads],
      ["written_back", "written back by the pipeline", COLOURS.writes],
      ["copied", "copied by the kernel's DMAs", COLOURS.copied]];
    const x = r.fetched.map((_, cell) => cell + 1);
    const some = series.filter(([key]) => r[key].some((n) => n > 0));
    $("bytes").hidden = !some.length || r.recorded < 2;
    if ($("bytes").hidden) return;
    Plotly.react($("bytes-plot"), some.map(([key, name, colour]) => ({
      type: r.recorded > 400 ? "scatter" : "bar", mode: "lines", line: { shape: "hvh", width: 1, color: colour },
      x, y: r[key], name: `${name} (${bytes(r[key].reduce((a, b) => a + b, 0))} in all)`,
      marker: { color: colour }, hovertemplate: "visit %{x}: %{y:,} B<extra></extra>",
    })), {
      height: 210, barmode: "stack", bargap: 0.1, margin: { l: 60, r: 10, t: 30, b: 40 },
      xaxis: { title: { text: "visit (cells in order)", font: { size: 11 } } },
      yaxis: { title: { text: "bytes", font: { size: 11 } }, rangemode: "tozero" },
      legend: { orientation: "h", yref: "container", y: 1, yanchor: "top" }, showlegend: true, shapes: hereLine(state.cell + 1),
    }, PLOT);
    if (!$("bytes-plot").dataset.listens) {
      $("bytes-plot").dataset.listens = "yes";
      $("bytes-plot").on("plotly_click", (event) => { state.cell = event.points[0].x - 1; moved(); });
    }
  }
  const hereLine = (x) => [{ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1,
    line: { color: COLOURS.block, width: 1.5, dash: "dot" } }];

  function rowOf(event) {
    return event.owner ? `${event.semaphore} of ${event.owner}` : event.semaphore;
  }
  function drawTimeline() {
    const { events, runs, lines } = kernel();
    $("timeline").hidden = !events.length;
    if (!events.length) return;
    const end = Math.max(...runs.map((r) => r.end));
    const order = runs.map((r) => r.program);
    const owners = [...events].sort((a, b) => order.indexOf(a.owner) - order.indexOf(b.owner));
    const names = [...new Set(owners.map(rowOf))].reverse();
    const hover = (e) => `${e.kind === "copy" ? "copy" : e.kind} ${e.text}` +
      (e.nbytes ? `, ${bytes(e.nbytes)}` : "") +
      `<br>steps ${e.start} to ${e.end}${e.awaited ? "" : ", nothing waits for it"}` +
      `<br>${runs[e.run].program} cell ${list(indicesOf(e.cell, runs[e.run].grid))}` +
      (e.line === null ? "" : `, line ${lines[e.line].number}`);
    const bars = (kind, name, colour) => {
      const some = events.filter((e) => e.kind === kind && e.end > e.start);
      return some.length && { type: "bar", orientation: "h", name, y: some.map(rowOf), base: some.map((e) => e.start),
        x: some.map((e) => e.end - e.start), marker: { color: colour, line: { color: "#fff", width: 1 } },
        width: kind === "wait" ? 0.25 : 0.6, text: some.map((e) => hover(e)), textposition: "none",
        hovertemplate: "%{text}<extra></extra>" };
    };
    const points = (kind, name, colour, symbol) => {
      const some = events.filter((e) => e.kind === kind && e.end === e.start);
      return some.length && { type: "scatter", mode: "markers", name, y: some.map(rowOf), x: some.map((e) => e.start),
        marker: { color: colour, symbol, size: 10, line: { color: "#fff", width: 1 } },
        text: some.map((e) => hover(e)), hovertemplate: "%{text}<extra></extra>" };
    };
    const series = [bars("copy", "copy in flight", COLOURS.copied), bars("wait", "stands still", "#b02a37"),
      points("wait", "wait, served at once", "#5b6b7b", "diamond"), points("signal", "signal", "#7b4fc9", "triangle-up"),
      points("copy", "copy that ends at once", COLOURS.copied, "square")];
    Plotly.react($("timeline-plot"), series.filter(Boolean), {
      height: 110 + 30 * names.length, barmode: "overlay", margin: { l: 150, r: 10, t: 34, b: 40 },
      xaxis: { title: { text: "step (one for each memory operation)", font: { size: 11 } }, range: [0, end + 1] },
      yaxis: { categoryorder: "array", categoryarray: names, automargin: true },
      legend: { orientation: "h", yref: "container", y: 1, yanchor: "top" }, showlegend: true, shapes: cellSpan(),
    }, PLOT);
  }
  function cellSpan() {
    const { steps, end, recorded } = run();
    if (recorded < 2) return [];
    return [{ type: "rect", x0: steps[state.cell], x1: steps[state.cell + 1] || end, yref: "paper",
      y0: 0, y1: 1, fillcolor: "#0000000d", line: { width: 0 }, layer: "below" }];
  }

  // -- all of it -------------------------------------------------------------------------------

  function drawAbout() {
    const k = kernel();
    const r = run();
    const about = $("about");
    about.replaceChildren(element("b", k.name),
      document.createTextNode(` ${k.source || ""} `),
      element("div", (r.grid.length ? `grid ${list(r.grid)}, ${r.cells.toLocaleString()} cells` : "no grid") +
        `, called in ${k.function}` + (k.calls > 1 ? `, ${k.calls} times` : "") +
        (r.program ? `, on ${k.runs.length} programs` : "")));
    k.notes.forEach((note) => about.append(element("p", note, { class: "note" })));
  }

  function moved() {
    moveSliders();
    drawGrid();
    moveOperands();
    moveLines();
    const r = run();
    const parts = [[r.fetched, "fetched"], [r.written_back, "written back"], [r.copied, "copied by DMAs"]]
      .filter(([of]) => of.some((n) => n > 0)).map(([of, name]) => `${bytes(of[state.cell])} ${name}`);
    const unknown = r.pattern_of_cell[state.cell] < 0 ? ["its accesses were not recorded"] : [];
    $("cell").textContent = `Cell ${list(indicesOf(state.cell, r.grid))}: ` +
      ([...parts, ...unknown].join(", ") || "nothing is moved");
    if (!$("bytes").hidden) Plotly.relayout($("bytes-plot"), { shapes: hereLine(state.cell + 1) });
    if (!$("timeline").hidden) Plotly.relayout($("timeline-plot"), { shapes: cellSpan() });
    document.body.dataset.cell = state.cell;
  }

  function draw() {
    for (const button of $("kernels").children) {
      button.toggleAttribute("aria-current", +button.dataset.kernel === state.kernel);
    }
    drawAbout();
    drawSliders();
    drawLines();
    drawOperands();
    drawBytes();
    drawTimeline();
    moved();
  }

  $("kernels").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    Object.assign(state, { kernel: +button.dataset.kernel, run: 0, cell: 0 });
    draw();
  });
  $("mode").addEventListener("change", (event) => { state.mode = event.target.value; drawOperands(); moveOperands(); });
  await loadPlotly();
  draw();
  document.body.dataset.ready = "yes";
})();
