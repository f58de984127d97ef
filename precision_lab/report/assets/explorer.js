// The explorer of a run: curves over the blocks, a map over blocks and steps, the history of a site and the table of all
// sites show one choice. A cell chooses the site of its block, a row its own.
"use strict";
(() => {
  const data = lab.data("explorer-data");
  if (!data) return;
  const values = lab.siteValues(data);
  const { sites } = data;
  const get = (id) => document.getElementById(`explorer-${id}`);

  const firstOther = Math.max(0, data.variants.findIndex(({ name }) => name !== data.reference));
  const state = {
    measure: Object.keys(values.measures)[0],
    variant: firstOther,
    stream: 0,
    branch: 0,
    site: null,
    at: null,
    on: data.variants.map(({ shown }) => shown),
    filter: { words: [], component: "", stream: "", from: null, to: null },
  };

  lab.ready(() => {
    get("controls").closest("section").hidden = false;

    // a named list of choices; entries: [value, title]
    const select = (title, entries, chosen, pick) => {
      const box = lab.element("select", { onchange: () => pick(box.value) },
        ...entries.map(([value, name]) => lab.element("option", { value, selected: value === chosen }, name)));
      return lab.element("label", {}, `${title} `, box);
    };
    const numbered = (names) => names.map((name, at) => [String(at), name]);
    const choose = (key, number) => (value) => { state[key] = number ? Number(value) : value; state.at = null; update(); };

    const usual = data.branches.findIndex((_, branch) => values.outputs(0).some((site) => values.history(state.measure, state.variant, branch, site)));
    state.branch = Math.max(0, usual);
    get("controls").append(
      select("Measure", Object.entries(values.measures).map(([name, { title }]) => [name, title]), state.measure, choose("measure")),
      select("Variant of map and table", numbered(data.variants.map(({ name }) => name)), String(state.variant), choose("variant", true)),
      ...(data.streams.length > 1 ? [select("Stream", numbered(data.streams), "0", choose("stream", true))] : []),
      ...(data.branches.length > 1
        ? [select("Branch", numbered(data.branches.map(({ title }) => title)), String(state.branch), choose("branch", true))] : []),
    );

    const boxes = data.variants.map(({ name, colour, dashes }, at) => {
      const box = lab.element("input", { type: "checkbox", checked: state.on[at], onchange: () => { state.on[at] = box.checked; update(); } });
      const swatch = lab.element("span", { class: "swatch" });
      let end = 0;
      const pieces = dashes.map((length, place) => `${place % 2 ? "transparent" : colour} 0 ${(end += 2 * length)}px`);
      swatch.style.background = pieces.length ? `repeating-linear-gradient(90deg, ${pieces.join(", ")})` : colour;
      return [box, lab.element("label", { class: "curve" }, box, swatch, lab.element("span", {}, ...lab.breakable(name)))];
    });
    const all = (on) => () => { state.on.fill(on); boxes.forEach(([box]) => (box.checked = on)); update(); };
    get("variants").append(...boxes.map(([, label]) => label),
      lab.element("span", { class: "together" },
        lab.element("button", { type: "button", onclick: all(true) }, "All"),
        lab.element("button", { type: "button", onclick: all(false) }, "None")));

    const curves = (of) => data.variants
      .map(({ name, colour, dashes }, at) => ({ name, colour, dashes, broad: name === data.reference, on: state.on[at], values: state.on[at] ? of(at) : [] }))
      .filter(({ on, values: own }) => on && own?.some((value) => value !== null));
    const shared = () => ({ yName: values.measures[state.measure].title, isLog: values.isLog(state.measure), lost: data.lost });

    const lines = lab.chart(get("lines"), (colours) => {
      const outputs = values.outputs(state.stream);
      return lab.curves(colours, {
        ...shared(), xName: "block", x: outputs.map((site) => sites.block[site]),
        curves: curves((variant) => {
          const last = values.failure(state.measure, variant, state.branch, outputs);
          return outputs.map((site) => values.worst(state.measure, variant, state.branch, site, last));
        }),
      });
    });

    const words = (site, step, value) => [
      sites.address[site], `${data.variants[state.variant].name}, step ${step}`, `${values.measures[state.measure].title}: ${values.text(value)}`,
    ];
    const cellsOf = () => values.outputs(state.stream).flatMap((site, x) =>
      (values.history(state.measure, state.variant, state.branch, site) ?? []).map((value, y) => ({ site, x, y, value, text: words(site, data.steps[y], value) })));
    let cells = [];
    const map = lab.chart(get("map"), (colours) => {
      const outputs = values.outputs(state.stream);
      cells = cellsOf();
      const block = state.site === null ? null : sites.block[state.site];
      return lab.map(colours, {
        ...shared(), name: values.measures[state.measure].title, cells, xName: "block", yName: "step", at: state.at,
        x: outputs.map((site) => sites.block[site]), y: data.steps, column: outputs.findIndex((site) => block !== null && sites.block[site] === block),
      });
    });
    map.chart.on("click", ({ data: point }) => point?.cell && pick(point.cell.site, point.cell));

    const history = lab.chart(get("history"), (colours) => lab.curves(colours, {
      ...shared(), xName: "step", x: data.steps,
      curves: state.site === null ? [] : curves((variant) => values.history(state.measure, variant, state.branch, state.site) ?? branchless(variant)),
    }));
    // of a site outside of branches, such as the result of a step
    const branchless = (variant) => data.branches.map((_, at) => values.history(state.measure, variant, at, state.site)).find(Boolean) ?? [];

    const summary = (measure) => (site) => values.summary(measure, state.variant, site);
    const lostAt = (site) => values.lostAt(state.variant, site);
    const columns = [
      { title: "site", value: (site) => sites.address[site] },
      { title: "component", value: (site) => sites.component[site], short: true },
      { title: "block", value: (site) => sites.block[site], numeric: true },
      { title: "stream", value: (site) => sites.stream[site], text: (value) => value || "—", short: true },
      { title: "port", value: (site) => sites.port[site], short: true },
      ...Object.entries(values.measures)
        .filter(([name]) => !values.isHeadroom(name) || name === "headroom float16" || name === "headroom bfloat16")
        .map(([name, { title }]) => ({
          title, note: values.isHeadroom(name) ? "bits, least" : "greatest", value: summary(name), numeric: true,
          text: (value) => lab.number(value),
        })),
      {
        title: "first not finite", note: "step", value: (site) => { const step = lostAt(site); return step === undefined ? null : step ?? -1; },
        text: (value) => (value === null ? "—" : value < 0 ? "outside of steps" : `step ${value}`), numeric: true,
      },
    ];
    const matches = (site) => {
      const { words: wanted, component, stream, from, to } = state.filter;
      const text = `${sites.address[site]} ${sites.component[site]} ${sites.stream[site]} ${sites.port[site]}`.toLowerCase();
      const block = sites.block[site];
      return wanted.every((word) => text.includes(word)) && (!component || sites.component[site] === component) &&
        (!stream || sites.stream[site] === stream) && (from === null || (block !== null && block >= from)) && (to === null || (block !== null && block <= to));
    };
    const table = lab.siteTable(get("sites"), get("pages"), { columns: () => columns, matches, choose: (site) => pick(site, null) });
    table.list(Array.from({ length: values.sites }, (_, site) => site));

    const filter = (change) => { Object.assign(state.filter, change); table.update(); };
    const distinct = (column) => [["", "all"], ...[...new Set(column)].filter(Boolean).sort().map((name) => [name, name])];
    const field = (title, type, changed) => {
      const box = lab.element("input", { type, size: 14, min: 0, class: type, oninput: () => changed(box.value) });
      return lab.element("label", {}, `${title} `, box);
    };
    const bound = (value) => (value === "" ? null : Number(value));
    get("filters").append(
      field("Search sites", "search", (text) => filter({ words: text.toLowerCase().split(/\s+/).filter(Boolean) })),
      select("Component", distinct(sites.component), "", (component) => filter({ component })),
      select("Stream of sites", distinct(sites.stream), "", (stream) => filter({ stream })),
      lab.element("span", { class: "together" },
        field("Blocks from", "number", (from) => filter({ from: bound(from) })),
        field("to", "number", (to) => filter({ to: bound(to) }))),
    );

    // chooses a site; cell: the one of the map it was chosen in; turned: whether the table shows the page that has it
    const pick = (site, cell, turned = true) => {
      state.site = site;
      state.at = cell;
      map.update();
      history.update();
      table.mark(site, turned);
      get("history-title").textContent = `${sites.address[site]} over the steps`;
      get("said").textContent = cell ? cell.text.join(", ") : `${sites.address[site]} is chosen`;
    };

    const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    get("map").addEventListener("keydown", (event) => {
      if (!cells.length) return;
      const move = MOVES[event.key];
      if (move) {
        event.preventDefault();
        const { x, y } = state.at ?? { x: -move[0], y: -move[1] };
        const next = cells.find((cell) => cell.x === Math.max(0, x + move[0]) && cell.y === Math.max(0, y + move[1]));
        if (!next) return;
        state.at = next;
        map.update();
        get("said").textContent = next.text.join(", ");
      } else if (event.key === "Enter" && state.at) pick(state.at.site, state.at);
    });

    const update = () => {
      const { title, meaning } = values.measures[state.measure];
      const outputs = values.outputs(state.stream);
      const crossed = data.variants.some((_, at) => state.on[at] && Number.isFinite(values.failure(state.measure, at, state.branch, outputs)));
      get("lines-title").textContent = `${title} over the blocks, worst over the steps${crossed ? "; crosses are not finite in the first step that fails" : ""}`;
      get("map-title").textContent = `${title} over blocks and steps: ${data.variants[state.variant].name}`;
      get("said").textContent = meaning;
      lines.update();
      map.update();
      history.update();
      table.update();
      if (state.site !== null) table.mark(state.site, true);
    };
    update();
    const first = values.outputs(state.stream).at(-1) ?? 0;
    pick(first, null, false); // the table begins at its head
    // for tests and for the console of a browser: the state, what is drawn, and where a cell is
    lab.explorer = {
      state,
      drawn: { lines: () => lines.chart.getOption().series, map: () => map.chart.getOption().series },
      place: (x, y) => map.chart.convertToPixel({ seriesIndex: 0 }, [x, y]),
    };
  });
})();
