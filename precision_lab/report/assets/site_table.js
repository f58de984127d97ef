// The table of sites: sorted, searched, filtered and shown a page at a time. A row has a button that chooses its site.
"use strict";
(() => {
  const ROWS = 25;

  // columns: {title, note, value(site), text(value, site), numeric, short}; choose(site) is called for a chosen row.
  lab.siteTable = (table, pages, { columns, matches, choose }) => {
    const state = { sites: [], column: 0, ascending: true, first: 0, chosen: null, all: [] };
    const head = lab.element("tr");
    const body = lab.element("tbody");
    columns().forEach(({ title, note, numeric }, at) => {
      head.append(lab.element("th", { scope: "col", class: numeric ? "n" : null },
        lab.element("button", { type: "button", class: "sort", onclick: () => order(at) }, title),
        lab.element("small", {}, note ?? "")));
    });
    table.append(lab.element("thead", {}, head), body);
    const status = lab.element("span", { role: "status", class: "count" });
    const turn = (by) => { state.first += by; draw(); };
    const back = lab.element("button", { type: "button", onclick: () => turn(-ROWS) }, "Previous");
    const on = lab.element("button", { type: "button", onclick: () => turn(ROWS) }, "Next");
    pages.append(back, on, status);

    const order = (at) => {
      const other = state.column !== at;
      const { numeric } = columns()[at];
      state.ascending = other ? !numeric : !state.ascending; // numbers begin with the greatest
      state.column = at;
      state.first = 0;
      update();
    };

    // what cannot be compared comes last
    const compare = (a, b) => {
      const missing = (value) => value === null || value === undefined || value === "";
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const sign = state.ascending ? 1 : -1;
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
    };

    const update = () => {
      const { value } = columns()[state.column];
      state.sites = state.all.filter(matches);
      state.sites = state.sites.map((site) => [value(site), site]).sort(([a], [b]) => compare(a, b)).map(([, site]) => site);
      [...head.cells].forEach((cell, at) => {
        if (at === state.column) cell.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
        else cell.removeAttribute("aria-sort");
      });
      draw();
    };

    const draw = () => {
      state.first = Math.max(0, Math.min(state.first, Math.floor((state.sites.length - 1) / ROWS) * ROWS));
      const shown = state.sites.slice(state.first, state.first + ROWS);
      body.replaceChildren(...shown.map((site) => {
        const cells = columns().map(({ value, text, numeric, short, title }, at) => {
          const words = text ? text(value(site), site) : value(site) ?? "—";
          if (at > 0) return lab.element("td", { class: numeric ? "n" : short ? "short" : null, "data-label": title }, String(words));
          return lab.element("th", { scope: "row" }, lab.element("button", {
            type: "button", class: "site", "aria-pressed": String(site === state.chosen), onclick: () => choose(site),
          }, lab.element("code", {}, ...lab.breakable(words))));
        });
        return lab.element("tr", { "data-site": site, class: site === state.chosen ? "chosen" : null }, ...cells);
      }));
      back.disabled = state.first === 0;
      on.disabled = state.first + ROWS >= state.sites.length;
      status.textContent = state.sites.length
        ? `${state.first + 1} to ${state.first + shown.length} of ${state.sites.length} sites` : "No site matches";
    };

    return {
      update,
      list: (sites) => { state.all = sites; },
      // marks the row of this site; turned: and shows the page that has it
      mark: (site, turned) => {
        state.chosen = site;
        const at = state.sites.indexOf(site);
        if (at >= 0 && turned) state.first = Math.floor(at / ROWS) * ROWS;
        draw();
      },
    };
  };
})();
