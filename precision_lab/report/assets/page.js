// What all scripts of a page share: the namespace `lab`, the data of the page, and elements without markup.
"use strict";
(() => {
  const lab = (globalThis.lab = globalThis.lab ?? {});

  // styles with .js hold only where scripts run
  document.documentElement.classList.add("js");

  // the value of a data block of the page; null where the page has none of this id
  lab.data = (id) => {
    const block = document.getElementById(id);
    return block ? JSON.parse(block.textContent) : null;
  };

  // An element with attributes, properties that start with "on" as listeners, and children: elements or text, never markup.
  lab.element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };

  // a name as children of an element: a line may break after each dot, underscore and plus sign, but not in parentheses
  lab.breakable = (name) => name.split(/(?<=[._+])(?![^(]*\))/).flatMap((piece, at) => (at ? [lab.element("wbr"), piece] : [piece]));

  lab.ready = (start) => {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  };

  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

  // A number with three significant digits, written as the tables of the page write it.
  lab.number = (value, digits = 3) => {
    if (value == null) return "—";
    if (typeof value === "string") return value;
    if (value === 0) return "0";
    const exponent = Math.floor(Math.log10(Math.abs(value)));
    let text;
    if (Number.isInteger(value) && Math.abs(value) < 1e7) text = grouped(String(value));
    else if (exponent > -5 && exponent < 5) text = grouped(value.toFixed(Math.max(digits - 1 - exponent, 0)));
    else {
      const [mantissa, power] = value.toExponential(digits - 1).split("e");
      const raised = String(Math.abs(Number(power))).replace(/\d/g, (digit) => SUPERSCRIPTS[digit]);
      text = `${mantissa}×10${Number(power) < 0 ? "⁻" : ""}${raised}`;
    }
    return text.replace("-", "\u2212");
  };

  const grouped = (text) => text.replace(/\B(?=(\d{3})+(?!\d))(?<!\.\d*)/g, "\u202f");

  // whether the reader asked for less motion
  lab.calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
})();
