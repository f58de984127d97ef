// Light and dark: as the system is set, or as the button at the head of the page says.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];

  const theme = (lab.theme = {
    // whether the page is dark now
    dark: () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches),
    // calls `listener` whenever that changes
    watch: (listener) => listeners.push(listener),
    // a colour of the style sheet by its name, such as "ink"
    colour: (name) => {
      const [light, dark] = getComputedStyle(root).getPropertyValue(`--${name}`).match(/#[0-9a-f]{3,8}/gi) ?? [];
      return theme.dark() ? dark ?? light : light;
    },
    // a colour of a variant, in the dark with a third of white
    shade: (colour) => {
      if (!theme.dark()) return colour;
      const channels = colour.match(/[0-9a-f]{2}/gi).map((two) => Math.round(parseInt(two, 16) * 0.67 + 255 * 0.33));
      return `rgb(${channels.join(", ")})`;
    },
  });
  const changed = () => listeners.forEach((listener) => listener(theme.dark()));
  system.addEventListener("change", () => root.dataset.theme || changed());

  lab.ready(() => {
    const header = document.querySelector("header");
    if (!header) return;
    const name = () => (theme.dark() ? "Light theme" : "Dark theme");
    const button = lab.element("button", {
      type: "button",
      class: "tool theme",
      onclick: () => {
        root.dataset.theme = theme.dark() ? "light" : "dark";
        changed();
      },
    }, name());
    theme.watch(() => (button.textContent = name()));
    header.prepend(button);
  });
})();
