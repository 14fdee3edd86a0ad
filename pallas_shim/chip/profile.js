"use strict";
// Draws the profiles that stand in the page as JSON; profile.py says what their fields mean.
(async function () {
  const profiles = JSON.parse(document.getElementById("profiles").textContent);
  const $ = (id) => document.getElementById(id);
  const PLOT = { displayModeBar: false, responsive: true };
  const COLOURS = { turn: "#9fb6cc", wait: "#b02a37", in: "#1769c4", out: "#d9570b", line: "#2c8a4b" };

  async function loadPlotly() {
    const packed = Uint8Array.from(atob($("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  function bytes(n) {
    for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
      if (n >= size) return `${+(n / size).toPrecision(4)} ${unit}`;
    }
    return `${n} B`;
  }
  const percent = (part, whole) => `${(100 * part / Math.max(whole, 1)).toFixed(1)}%`;
  const scale = (p) => (p.clock ? 1e6 / p.clock : 1);
  const unit = (p) => (p.clock ? "µs" : "cycles");
  const axis = (text, more = {}) => ({ title: { text, font: { size: 11 } }, tickfont: { size: 10 }, ...more });

  function drawAbout(p) {
    const about = $("about");
    about.replaceChildren(element("b", `${p.tpu}: ${p.kernel}`), document.createTextNode(` ${p.operands} `),
      element("small", p.source || ""));
    if (p.seconds !== null) {
      about.append(element("p", `Estimated ${+(p.seconds * 1e3).toPrecision(3)} ms a call`, { class: "big", id: "estimate" }),
        element("p", p.error, { id: "error" }));
    }
    if (p.elapsed !== null) {
      about.append(element("p", `Bound by ${p.bound}. ${Math.round(p.elapsed).toLocaleString()} cycles: ` +
        `${percent(p.waited, p.elapsed)} wait for copies, ${percent(p.stalls, p.elapsed)} for a busy unit; ` +
        `copies move ${percent(p.moving, p.elapsed)} of the time. ` +
        `${p.cycles.toLocaleString()} bundles ran, of ${p.bundles.toLocaleString()} in the code.`));
    }
    if (p.unknown) about.append(element("p", p.unknown, { class: "note" }));
    if (p.from_run.length) about.append(element("p", `The run in NumPy decided the branches at ${p.from_run.join(", ")}.`));
    p.checked.forEach((said) => about.append(element("p", `Checked: ${said}.`)));
  }

  function drawTimeline(p) {
    const s = scale(p);
    const last = p.turns.slice(0, 24);
    const end = last.length ? last[last.length - 1].start + last[last.length - 1].cycles : p.elapsed;
    const bars = (name, row, spans, colour, texts) => ({
      type: "bar", orientation: "h", name, y: spans.map((_, i) => row(i)), base: spans.map((x) => x[0] * s),
      x: spans.map((x) => (x[1] - x[0]) * s), marker: { color: colour, line: { color: "#fff", width: 1 } },
      text: texts, textposition: "none", hovertemplate: "%{text}<extra></extra>",
    });
    const turns = p.turns.map((t) => [t.start, t.start + t.cycles]);
    const lanes = [];
    const laneOf = p.flights.map((f) => {
      let lane = lanes.findIndex((free) => free <= f.issued);
      if (lane < 0) { lane = lanes.length; lanes.push(0); }
      lanes[lane] = f.done;
      return lane;
    });
    const copies = (wanted, name, colour) => {
      const some = p.flights.map((f, i) => [f, laneOf[i]]).filter(([f]) => f.kind.endsWith("to_hbm") === wanted);
      return bars(name, (i) => `copies ${some[i][1] + 1}`, some.map(([f]) => [f.issued, f.done]), colour,
        some.map(([f]) => `${f.kind.slice(4)} ${p.names[f.operand] || ""}, ${bytes(f.size)}<br>` +
          `started at ${(f.issued * s).toFixed(3)}, moves from ${(f.begun * s).toFixed(3)}, done at ${(f.done * s).toFixed(3)} ${unit(p)}`));
    };
    Plotly.react($("timeline-plot"), [
      bars("turn of the grid", () => "kernel", turns, COLOURS.turn, p.turns.map((t, i) =>
        `turn ${i}: ${(t.cycles * s).toFixed(3)} ${unit(p)}, waits ${(t.waited * s).toFixed(3)}`)),
      bars("waits for copies", () => "waits", p.waiting, COLOURS.wait, p.waiting.map((w) =>
        `waits ${((w[1] - w[0]) * s).toFixed(3)} ${unit(p)}`)),
      copies(false, "copy in", COLOURS.in), copies(true, "copy out", COLOURS.out),
    ], {
      height: 150 + 22 * lanes.length, barmode: "overlay", margin: { l: 90, r: 10, t: 30, b: 40 },
      xaxis: axis(unit(p), { range: [0, end * s] }), yaxis: { autorange: "reversed", automargin: true },
      legend: { orientation: "h", yref: "container", y: 1, yanchor: "top" }, showlegend: true,
    }, PLOT);
    const more = p.steps.reduce((sum, step) => sum + step.times, 0);
    $("timeline-note").textContent = `the first turns of ${more.toLocaleString()}; drag to see more` +
      (p.seconds === null ? "; lower bounds, not estimates" : "");
  }

  function drawRoofline(p) {
    const r = p.roofline;
    $("roofline-note").textContent = r ? "published peak (bfloat16) and bandwidth of HBM" :
      "is not known: operations, or the TPU's peak, aren't";
    if (!r) { Plotly.purge($("roofline-plot")); return; }
    const here = r.operations / Math.max(r.size, 1);
    const ridge = r.peak / r.bandwidth;
    const xs = [Math.min(here, ridge) / 30, ridge, Math.max(here, ridge) * 30];
    const data = [{ x: xs, y: xs.map((x) => Math.min(x * r.bandwidth, r.peak) / 1e12), mode: "lines", name: "roof",
      line: { color: "#111" } }];
    if (r.size) {
      const seconds = p.seconds || p.elapsed / p.clock;
      data.push({ x: [here], y: [r.operations / seconds / 1e12], mode: "markers",
        marker: { size: 12, color: p.seconds ? COLOURS.out : "#fff", line: { color: COLOURS.out, width: 2 } },
        name: p.seconds ? "estimated" : "at most, from the lower bound of the time" });
    }
    Plotly.react($("roofline-plot"), data, {
      height: 260, margin: { l: 60, r: 10, t: 24, b: 40 }, xaxis: axis("operations for each byte from and to HBM", { type: "log" }),
      yaxis: axis("TFLOP/s", { type: "log" }), legend: { orientation: "h", yref: "container", y: 1, yanchor: "top" }, showlegend: true,
    }, PLOT);
  }

  function drawUnits(p) {
    const some = Object.entries(p.units);
    Plotly.react($("units-plot"), [{ type: "bar", x: some.map(([name]) => name), y: some.map(([, share]) => 100 * share),
      marker: { color: COLOURS.line }, hovertemplate: "%{x}: %{y:.1f}%<extra></extra>" }], {
      height: 260, margin: { l: 50, r: 10, t: 10, b: 70 }, yaxis: axis("% of the cycles that don't wait for copies", { rangemode: "tozero" }), xaxis: axis(""),
    }, PLOT);
  }

  function drawVmem(p) {
    const s = scale(p);
    const held = p.allocations.filter((a) => a.space === "vmem").reduce((sum, a) => sum + a.size, 0);
    const { at, held: flying } = p.vmem_of_time;
    const end = at.length ? at[at.length - 1] * s : 1;
    $("vmem-note").textContent = `${bytes(held)} of ${bytes(p.vmem)} allocated; what copies fill or empty`;
    Plotly.react($("vmem-plot"), [
      { x: at.map((t) => t * s), y: flying, mode: "lines", line: { shape: "hv", color: COLOURS.in }, name: "in flight" },
      { x: [0, end], y: [held, held], mode: "lines", line: { color: "#111", dash: "dot" }, name: "allocated" },
    ], {
      height: 260, margin: { l: 60, r: 10, t: 24, b: 40 }, xaxis: axis(unit(p), { range: [0, Math.min(end, ((p.turns[24] || {}).start || Infinity) * s)] }), yaxis: axis("bytes", { rangemode: "tozero" }),
      legend: { orientation: "h", yref: "container", y: 1, yanchor: "top" }, showlegend: true,
    }, PLOT);
  }

  function drawMoved(p) {
    const head = element("tr");
    ["operand", "copies", "number", "bytes"].forEach((text) => head.append(element("th", text)));
    $("moved").replaceChildren(head, ...p.moved.map((m) => {
      const row = element("tr");
      [m.operand, m.kind, m.times.toLocaleString(), bytes(m.size)].forEach((text) => row.append(element("td", text)));
      return row;
    }));
  }

  function drawLines(p) {
    const rows = [];
    let file = null, before = 0;
    const row = (share, number, text, title, hot) => {
      const made = element("tr", undefined, hot ? { class: "hot" } : {});
      made.title = title;
      made.append(element("td", share, { class: "share" }), element("td", number, { class: "number" }), element("td", text));
      rows.push(made);
    };
    const said = (line) => `${line.cycles.toLocaleString()} cycles, waits ${line.waited.toLocaleString()}; ` +
      Object.entries(line.units).map(([name, count]) => `${name} ${count.toLocaleString()}`).join(", ");
    for (const line of p.source_lines) {
      if (line.file !== file) row("", "", line.file, "", false);
      else if (line.number !== before + 1) row("", "…", "", "", false);
      [file, before] = [line.file, line.number];
      const spent = line.cycles + line.waited;
      row(spent ? percent(spent, p.elapsed) : "", line.number, line.text, spent ? said(line) : "", spent > 0.05 * p.elapsed);
      if (spent) {
        const did = Object.entries(line.units).map(([name, count]) => `${name} ${count.toLocaleString()}`).join(", ");
        rows[rows.length - 1].lastChild.append(element("div", did, { class: "did" }));
      }
    }
    if (p.no_line) row(percent(p.no_line.cycles + p.no_line.waited, p.elapsed), "", "the pipeline's own code, and what the compiler gives no line", said(p.no_line), false);
    $("lines").replaceChildren(...rows);
  }

  function draw(number) {
    const p = profiles[number];
    [...$("kernels").children].forEach((b) => b.toggleAttribute("aria-current", +b.dataset.kernel === number));
    drawAbout(p);
    $("charts").hidden = p.elapsed === null;
    if (p.elapsed !== null) [drawTimeline, drawRoofline, drawUnits, drawVmem, drawMoved, drawLines].forEach((of) => of(p));
    document.body.dataset.kernel = number;
  }
  $("kernels").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) draw(+button.dataset.kernel);
  });
  await loadPlotly();
  if (profiles.length) draw(0);
  document.body.dataset.ready = "yes";
})();
