// An image at full size, with its map over it, zoomed in steps around the middle of what is seen.
"use strict";

class Viewer {
  constructor(pane, bar) {
    this.pane = pane;
    this.sheet = pane.querySelector(".sheet");
    this.image = pane.querySelector(".image");
    this.map = pane.querySelector(".map");
    this.bar = bar;
    this.zoom = 1;
    pane.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.scale(event.deltaY < 0 ? 1.25 : 0.8);
    }, { passive: false });
    let from = null;
    pane.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      event.preventDefault();
      from = { x: event.clientX + pane.scrollLeft, y: event.clientY + pane.scrollTop };
      pane.setPointerCapture(event.pointerId);
    });
    pane.addEventListener("pointermove", (event) => {
      if (from) pane.scrollTo(from.x - event.clientX, from.y - event.clientY);
    });
    pane.addEventListener("pointerup", () => { from = null; });
    pane.addEventListener("dblclick", () => this.scale(this.zoom < 2 ? 2 : 1 / this.zoom));
  }

  scale(factor) {
    const { pane } = this;
    const before = this.zoom;
    this.zoom = Math.min(16, Math.max(1, this.zoom * factor));
    const by = this.zoom / before;
    const x = (pane.scrollLeft + pane.clientWidth / 2) * by - pane.clientWidth / 2;
    const y = (pane.scrollTop + pane.clientHeight / 2) * by - pane.clientHeight / 2;
    this.sheet.style.width = this.sheet.style.height = `${this.zoom * 100}%`;
    pane.scrollTo(x, y);
  }

  fit() {
    this.scale(1 / this.zoom);
  }

  toggleMap() {
    if (!this.map || !this.map.getAttribute("src")) return;
    this.map.hidden = !this.map.hidden;
    this.bar.querySelector("[data-do=map]")?.setAttribute("aria-pressed", String(!this.map.hidden));
  }

  act(name) {
    if (name === "in") this.scale(1.5);
    else if (name === "out") this.scale(1 / 1.5);
    else if (name === "fit") this.fit();
    else if (name === "map") this.toggleMap();
    else return false;
    return true;
  }

  key(key) {
    const name = { "+": "in", "=": "in", "-": "out", "0": "fit", "m": "map" }[key];
    return name ? this.act(name) : false;
  }
}

window.Viewer = Viewer;

document.addEventListener("DOMContentLoaded", () => {
  const pane = document.querySelector("#viewer");
  if (!pane) return;
  const bar = document.querySelector("#viewer-bar");
  const viewer = new Viewer(pane, bar);
  for (const button of bar.querySelectorAll("[data-do]")) {
    button.hidden = false;
    button.addEventListener("click", () => viewer.act(button.dataset.do));
  }
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (viewer.key(event.key)) event.preventDefault();
  });
});
