// One place and one magnification for all panes of a stage: what moves one moves the others.
(() => {
  "use strict";

  const MOST_ZOOM = 64; // CSS pixels for a pixel of the picture
  const STEP = Math.SQRT2;

  class PanZoom {
    /** stage: an element with children `.pane` of one size. apply: called with (scale, x, y) after each change. */
    constructor(stage, apply) {
      Object.assign(this, { stage, apply, pointers: new Map(), size: [1, 1], scale: 1, x: 0, y: 0, fitted: true });
      stage.addEventListener("pointerdown", (event) => this.down(event));
      stage.addEventListener("pointermove", (event) => this.move(event));
      for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
        stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
      }
      stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      stage.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.fitted && this.fit()).observe(stage);
    }

    /** Size of a pane in CSS pixels. */
    get pane() {
      const pane = this.stage.querySelector(".pane");
      return [pane.clientWidth, pane.clientHeight];
    }

    /** The pictures have this size now; the place is kept where it is the same. */
    of(width, height) {
      const same = this.size[0] === width && this.size[1] === height;
      this.size = [width, height];
      if (same && !this.fitted) this.to(this.scale, this.x, this.y);
      else this.fit();
    }

    /** The whole picture; where it is magnified, each pixel takes a whole number of the screen's. */
    fit() {
      const [width, height] = this.pane;
      const ratio = window.devicePixelRatio || 1;
      const exact = Math.min(width / this.size[0], height / this.size[1]) * ratio;
      const scale = (exact > 1 ? Math.floor(exact) : exact) / ratio;
      this.to(scale || 1, 0, 0);
      this.least = this.scale;
      this.fitted = true;
      this.stage.style.touchAction = "pan-y"; // one finger scrolls the page until the picture is magnified
    }

    /** Magnifies by a factor; the point (x, y) of a pane stays where it is, by default its centre. */
    zoom(factor, x = this.pane[0] / 2, y = this.pane[1] / 2) {
      const scale = Math.min(MOST_ZOOM, Math.max(this.least, this.scale * factor));
      if (scale === this.least) return this.fit();
      const ratio = scale / this.scale;
      this.fitted = false;
      this.stage.style.touchAction = "none";
      return this.to(scale, x - (x - this.x) * ratio, y - (y - this.y) * ratio);
    }

    pan(dx, dy) {
      this.to(this.scale, this.x + dx, this.y + dy);
    }

    /** A picture larger than its pane covers it; one that is smaller is in the middle. */
    to(scale, x, y) {
      const place = (at, extent, pane) =>
        extent <= pane ? (pane - extent) / 2 : Math.min(0, Math.max(pane - extent, at));
      this.scale = scale;
      this.x = place(x, this.size[0] * scale, this.pane[0]);
      this.y = place(y, this.size[1] * scale, this.pane[1]);
      this.apply(this.scale, this.x, this.y);
    }

    /** A pointer's place in the pane that it is over. */
    static at(event) {
      const pane = (event.target.closest(".pane") || event.currentTarget.querySelector(".pane")).getBoundingClientRect();
      return [event.clientX - pane.left, event.clientY - pane.top];
    }

    down(event) {
      if (event.target.closest("[role=slider]") || event.button) return;
      this.pointers.set(event.pointerId, PanZoom.at(event));
      event.target.setPointerCapture(event.pointerId);
    }

    move(event) {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const [x, y] = PanZoom.at(event);
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      this.pointers.set(event.pointerId, [x, y]);
      if (!other) return this.pan(x - before[0], y - before[1]);
      const distance = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      return this.zoom(distance([x, y]) / Math.max(1, distance(before)), (x + other[0]) / 2, (y + other[1]) / 2);
    }

    /** A page scrolls over a picture unless the picture is in focus, or the fingers on a touch pad pinch (Ctrl). */
    wheel(event) {
      if (!event.ctrlKey && !event.metaKey && !this.stage.contains(document.activeElement)) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...PanZoom.at(event));
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const [width, height] = this.pane.map((extent) => extent / 10);
      const moves = { ArrowLeft: [width, 0], ArrowRight: [-width, 0], ArrowUp: [0, height], ArrowDown: [0, -height] };
      if (event.key in moves && !this.fitted) this.pan(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(STEP);
      else if (event.key === "-") this.zoom(1 / STEP);
      else if (event.key === "0") this.fit();
      else return;
      event.preventDefault();
    }
  }

  Object.assign(lab, { PanZoom, ZOOM_STEP: STEP });
})();
