// What every page does: tells its parts that may be fetched anew that it is time, while somebody looks.
"use strict";

const TICK_MS = 5000;

setInterval(() => {
  if (document.visibilityState === "visible") document.body.dispatchEvent(new Event("tick"));
}, TICK_MS);

// The threshold's slider says the rate that it stands for, not the number of its stop.
document.addEventListener("htmx:afterSwap", (event) => {
  const said = document.querySelector("#changes")?.dataset.said;
  if (event.target.id === "explored" && said) document.querySelector("#stop")?.setAttribute("aria-valuetext", said);
});
