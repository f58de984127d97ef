// The viewer: two pictures of the table beneath, side by side, one over the other, in turn, or their difference.
(() => {
  "use strict";
  const { PanZoom, ZOOM_STEP, difference, drawDifference, readPng } = lab;

  const root = document.getElementById("compare-pictures");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const [stage, strip, handle, canvas] = ["stage", "strip", "handle", "difference"].map(part);
  const choice = { at: part("case"), a: part("a"), b: part("b"), gain: part("gain") };
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const PERIOD = 700; // ms for each picture, far below three flashes a second
  let mode = "side";
  let split = 50;
  let showsB = false;
  let timer = 0;
  let found = null;

  const pictures = new Map(); // "case|variant" -> img of the table
  for (const img of document.querySelectorAll("#all-pictures img[data-exact]")) {
    pictures.set(`${img.dataset.case}|${img.dataset.variant}`, img);
  }
  const chosen = (which) => pictures.get(`${choice.at.value}|${choice[which].value}`);

  const place = new PanZoom(stage, (scale, x, y) => {
    for (const layer of stage.querySelectorAll(".layer > *")) {
      layer.style.transform = `matrix(${scale}, 0, 0, ${scale}, ${x}, ${y})`;
      layer.style.imageRendering = scale * (window.devicePixelRatio || 1) > 1 ? "pixelated" : "auto";
    }
    part("zoom").textContent = `${+scale.toFixed(2)} ×`;
  });

  /** Keeps the variants that have a picture of this case. */
  function offer() {
    for (const which of ["a", "b"]) {
      for (const option of choice[which].options) {
        option.disabled = !pictures.has(`${choice.at.value}|${option.value}`);
      }
      const usable = [...choice[which].options].filter((option) => !option.disabled);
      if (choice[which].selectedOptions[0].disabled) choice[which].value = usable[which === "a" ? 0 : 1].value;
    }
    strip.replaceChildren(...[...choice.b.options].filter((option) => !option.disabled).map(button));
  }

  function button({ value }) {
    const made = document.createElement("button");
    const small = new Image();
    small.src = pictures.get(`${choice.at.value}|${value}`).src;
    small.alt = "";
    made.type = "button";
    made.value = value;
    made.append(small, ...lab.breakable(value));
    made.addEventListener("click", () => choose("b", value));
    return made;
  }

  function choose(which, value) {
    choice[which].value = value;
    if (which === "at") offer();
    show();
  }

  /** Draws the choice. */
  async function show() {
    const [a, b] = [chosen("a"), chosen("b")];
    for (const each of strip.children) each.setAttribute("aria-pressed", String(each.value === choice.b.value));
    for (const layer of stage.querySelectorAll(".layer[data-of]")) {
      const shown = layer.firstElementChild || layer.appendChild(new Image());
      const { src, alt } = layer.dataset.of === "a" ? a : b;
      Object.assign(shown, { src, alt });
    }
    for (const label of stage.querySelectorAll("span[data-of]")) {
      const img = label.dataset.of === "a" ? a : b;
      const note = img.dataset.note ? ` (${img.dataset.note})` : "";
      label.textContent = `${label.dataset.of.toUpperCase()}: ${img.dataset.variant}${note}`;
    }
    found = null;
    part("measure").textContent = "";
    for (const name of ["max", "mean"]) delete part("measure").dataset[name];
    arrange();
    const [first, second] = await Promise.all([a, b].map((img) => pixels(img)));
    if (a !== chosen("a") || b !== chosen("b")) return; // another choice since then
    place.of(Math.max(first.width, second.width), Math.max(first.height, second.height));
    found = difference(first, second);
    part("measure").textContent = found
      ? `Differences in steps of 8 bits: at most ${found.max}, on average ${found.mean.toPrecision(3)}; ` +
        `${(100 * found.changed).toFixed(1)} % of the pixels differ.`
      : "The pictures differ in size.";
    Object.assign(part("measure").dataset, found ? { max: found.max, mean: found.mean } : { max: "", mean: "" });
    arrange();
  }

  const read = new Map();
  /** Pixels of a picture; those of the last few are kept. */
  function pixels(img) {
    if (!read.has(img)) {
      if (read.size > 7) read.delete(read.keys().next().value);
      read.set(img, readPng(img.src));
    }
    return read.get(img);
  }

  /** Shows the layers of the mode. */
  function arrange() {
    stage.dataset.mode = mode;
    const [ofA, ofB] = stage.querySelector(".pane").querySelectorAll(".layer");
    ofA.style.visibility = mode === "blink" && showsB ? "hidden" : "visible";
    ofB.style.visibility = mode === "slider" || (mode === "blink" && showsB) ? "visible" : "hidden";
    ofB.style.clipPath = mode === "slider" ? `inset(0 0 0 ${split}%)` : "none";
    handle.style.left = `${split}%`;
    handle.setAttribute("aria-valuenow", String(Math.round(split)));
    handle.setAttribute("aria-valuetext", `${Math.round(split)} % ${choice.a.value}, the rest ${choice.b.value}`);
    stage.dataset.shows = mode === "blink" && showsB ? "b" : "a";
    canvas.style.visibility = mode === "difference" && found ? "visible" : "hidden";
    if (mode === "difference" && found) drawDifference(canvas, found, Number(choice.gain.value));
    part("caption").textContent = `|A - B| × ${choice.gain.value}`;
    part("blink").hidden = mode !== "blink";
    part("gains").hidden = mode !== "difference";
    part("automatic").disabled = still.matches;
    part("automatic").setAttribute("aria-pressed", String(timer !== 0));
  }

  function turn(to) {
    mode = to;
    root.querySelector(`input[value="${to}"]`).checked = true;
    showsB = false;
    automatic(to === "blink");
    place.fit(); // the panes have another size now
  }

  function automatic(on) {
    clearInterval(timer);
    timer = on && !still.matches ? setInterval(() => swap(), PERIOD) : 0;
    arrange();
  }

  function swap() {
    showsB = !showsB;
    arrange();
  }

  function blinkOnce() {
    if (mode !== "blink") turn("blink");
    automatic(false);
    swap();
  }

  function divide(to) {
    split = Math.min(100, Math.max(0, to));
    arrange();
  }

  choice.at.addEventListener("change", () => choose("at", choice.at.value));
  for (const which of ["a", "b"]) choice[which].addEventListener("change", show);
  choice.gain.addEventListener("change", arrange);
  for (const input of root.querySelectorAll("input[name=view]")) input.addEventListener("change", () => turn(input.value));
  for (const zoom of root.querySelectorAll("[data-zoom]")) {
    const factor = { in: ZOOM_STEP, out: 1 / ZOOM_STEP }[zoom.dataset.zoom];
    zoom.addEventListener("click", () => (factor ? place.zoom(factor) : place.fit()));
  }
  part("swap").addEventListener("click", blinkOnce);
  part("automatic").addEventListener("click", () => automatic(timer === 0));
  stage.addEventListener("keydown", (event) => event.key.toLowerCase() === "b" && blinkOnce());
  still.addEventListener("change", () => automatic(false));

  handle.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const ends = { Home: 0, End: 100 };
    if (!(event.key in steps || event.key in ends)) return;
    event.preventDefault();
    event.stopPropagation();
    divide(ends[event.key] ?? split + steps[event.key] * (event.shiftKey ? 10 : 1));
  });
  handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const pane = handle.parentElement.getBoundingClientRect();
    divide((100 * (event.clientX - pane.left)) / pane.width);
  });

  root.hidden = false;
  offer();
  show();
})();
