// Tables of class "sortable": a click or a key on the head of a column sorts the rows, again the other way round.
// With data-search a table gets a field that hides the rows without the words in it. A cell may state the value to sort
// by in data-value, and a head may have data-sort="none". Rows without a value come last both ways.
"use strict";
(() => {
  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const NUMBER = /^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i;

  // the number that a cell begins with, as the pages write numbers; null for other text
  const number = (text) => {
    const plain = text
      .replace(/[\s\u202f\u00a0]/g, "")
      .replace(/\u2212/g, "-")
      .replace(/×10(⁻?)([⁰¹²³⁴⁵⁶⁷⁸⁹]+)/, (_, sign, digits) =>
        `e${sign && "-"}${[...digits].map((digit) => SUPERSCRIPTS.indexOf(digit)).join("")}`)
      .replace(/^\[/, "");
    const found = plain.match(NUMBER);
    return found ? Number(found[0]) : null;
  };

  // what a column is sorted by: the text of a cell without its notes
  const value = (cell) => {
    if (!cell) return "";
    if (cell.dataset.value !== undefined) return cell.dataset.value;
    const parts = [...cell.childNodes].filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent);
    const text = parts.join("").trim();
    return text === "—" ? "" : text;
  };

  // Compares two values; numbers come before text, nothing comes last. ascending: 1 or -1.
  const compare = (a, b, ascending) => {
    if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
    if (a.number !== null && b.number !== null) return ascending * (a.number - b.number);
    if (a.number !== null || b.number !== null) return (a.number === null) - (b.number === null);
    return ascending * a.text.localeCompare(b.text, undefined, { numeric: true });
  };

  const sort = (table, column, ascending) => {
    for (const body of table.tBodies) {
      const keyed = [...body.rows].map((row) => {
        const text = value(row.cells[column]);
        return { row, text, number: number(text) };
      });
      keyed.sort((a, b) => compare(a, b, ascending)); // stable
      body.append(...keyed.map(({ row }) => row));
    }
  };

  const makeSortable = (table) => {
    const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
    heads.forEach((head, column) => {
      if (head.dataset.sort === "none") return;
      const notes = [...head.children].filter((child) => child.tagName === "SMALL");
      const title = [...head.childNodes].filter((node) => !notes.includes(node));
      if (!title.map((node) => node.textContent).join("").trim()) return;
      const button = lab.element("button", {
        type: "button",
        class: "sort",
        onclick: () => {
          const ascending = head.getAttribute("aria-sort") !== "ascending";
          heads.forEach((other) => other.removeAttribute("aria-sort"));
          head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
          sort(table, column, ascending ? 1 : -1);
        },
      });
      button.append(...title);
      head.prepend(button);
    });
  };

  const makeSearchable = (table) => {
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    const name = table.caption?.textContent || table.closest("[aria-label]")?.getAttribute("aria-label") || "the table";
    const status = lab.element("span", { role: "status", class: "count" });
    const search = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      const hidden = rows.filter((row) => {
        const text = row.textContent.toLowerCase();
        return (row.hidden = !words.every((word) => text.includes(word)));
      });
      status.textContent = words.length ? `${rows.length - hidden.length} of ${rows.length} rows` : "";
    };
    const field = lab.element("input", {
      type: "search",
      placeholder: table.dataset.search || "Search",
      "aria-label": `Search in ${name.replace(" (scrollable)", "")}`,
      oninput: search,
    });
    (table.closest(".wide") ?? table).before(lab.element("div", { class: "tools" }, field, status));
  };

  lab.ready(() => {
    for (const table of document.querySelectorAll("table.sortable")) {
      makeSortable(table);
      if (table.dataset.search !== undefined) makeSearchable(table);
    }
  });
})();
