// The wall of images by keyboard and mouse: where one is, what is selected, what was said and can be undone.
// Without this the page works by its forms.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const wall = document.querySelector("#wall");
  const told = document.querySelector("#told");
  const big = document.querySelector("#big");
  const viewer = new window.Viewer(big.querySelector(".pane"), big);
  const { prefix } = document.documentElement.dataset; // before each address, where the page shares a host
  const undoable = [];
  let current = null; // id of the image that the keys mean
  let anchor = null; // where a range begins
  let sending = Promise.resolve(); // one label after the other, in the order in which they were given

  const cards = () => [...wall.querySelectorAll(".shot")];
  const cardOf = (id) => document.getElementById(`card-${id}`);
  const selected = () => cards().filter((card) => card.getAttribute("aria-selected") === "true");
  const isOpen = () => big.open;

  function tell(text, failed = false) {
    told.textContent = text;
    told.classList.toggle("failed", failed);
    if (isOpen()) document.querySelector("#big-said").textContent = text;
  }

  function moveTo(card, { range = false } = {}) {
    if (!card) return;
    const before = current && cardOf(current);
    if (before) before.tabIndex = -1;
    if (range) select(card);
    else anchor = card.dataset.id;
    current = card.dataset.id;
    card.tabIndex = 0;
    if (isOpen()) show(card);
    else card.focus();
    const all = cards();
    if (all.indexOf(card) >= all.length - columns(all) * 2) more();
  }

  function select(card) {
    const all = cards();
    const from = all.findIndex((one) => one.dataset.id === (anchor ?? current));
    const to = all.indexOf(card);
    const [low, high] = from < to ? [from, to] : [to, from];
    all.forEach((one, place) => mark(one, place >= low && place <= high));
    tell(`${selected().length} selected: n normal, a anomaly, Esc none`);
  }

  function mark(card, on) {
    if (on) card.setAttribute("aria-selected", "true");
    else card.removeAttribute("aria-selected");
  }

  function selectNone() {
    cards().forEach((card) => mark(card, false));
    anchor = current;
  }

  function columns(all) {
    const top = all[0]?.offsetTop;
    const next = all.findIndex((card) => card.offsetTop !== top);
    return next < 1 ? Math.max(1, all.length) : next;
  }

  function more() {
    const link = document.querySelector("#more a");
    if (link && !link.dataset.asked) {
      link.dataset.asked = "yes";
      window.htmx.trigger(link, "more");
    }
  }

  // Says `label` ("normal", "anomaly" or "none") of `ids`; the server's cards take the place of ours.
  function send(ids, label) {
    ids.forEach((id) => cardOf(id)?.classList.add("busy"));
    sending = sending.then(async () => {
      const body = new URLSearchParams({ label, back: "/review" });
      ids.forEach((id) => body.append("id", id));
      try {
        const answer = await fetch(`${prefix}/review/label`, { method: "POST", body, headers: { "HX-Request": "true" } });
        const text = await answer.text();
        if (!answer.ok) throw new Error(sentence(text, answer));
        put(text);
        return true;
      } catch (error) {
        ids.forEach((id) => cardOf(id)?.classList.remove("busy"));
        tell(`Not saved: ${error.message}`, true);
        return false;
      }
    });
    return sending;
  }

  function sentence(text, answer) {
    const page = new DOMParser().parseFromString(text, "text/html");
    return page.querySelector(".said")?.textContent || page.body.textContent.trim().slice(0, 300) || answer.statusText;
  }

  function put(html) {
    const part = document.createElement("template");
    part.innerHTML = html;
    for (const fresh of part.content.querySelectorAll(".shot")) {
      const old = document.getElementById(fresh.id);
      if (!old) continue;
      const had = document.activeElement === old || old.contains(document.activeElement);
      if (old.classList.contains("mapped")) fresh.classList.add("mapped");
      fresh.tabIndex = old.tabIndex;
      old.replaceWith(fresh);
      if (had && !isOpen()) fresh.focus();
      if (isOpen() && fresh.dataset.id === current) describe(fresh);
    }
  }

  async function label(given, of = null) {
    const chosen = of ? [of] : selected().length ? selected() : [cardOf(current)].filter(Boolean);
    if (!chosen.length) return;
    const before = new Map(chosen.map((card) => [card.dataset.id, card.dataset.label || "none"]));
    const ids = [...before.keys()];
    const name = ids.length === 1 ? chosen[0].dataset.name : `${ids.length} images`;
    const all = cards();
    const next = all[all.indexOf(chosen.at(-1)) + 1];
    selectNone();
    tell(`${name}: ${given}. u takes it back`);
    if (!of) {
      moveTo(next ?? chosen.at(-1));
      anchor = current;
    }
    if (await send(ids, given)) undoable.push(before);
  }

  async function undo() {
    // What is still on its way is undone too, once it has arrived.
    await sending;
    const last = undoable.pop();
    if (!last) {
      tell("Nothing to undo");
      return;
    }
    // Back to what was said before, which differs from image to image.
    for (const said of new Set(last.values())) {
      await send([...last].filter(([, was]) => was === said).map(([id]) => id), said);
    }
    const first = cardOf([...last.keys()][0]);
    moveTo(first);
    tell(last.size === 1 ? `${first?.dataset.name ?? "image"}: taken back` : `${last.size} images: taken back`);
  }

  // Full size

  function show(card) {
    const { id } = card.dataset;
    viewer.fit();
    viewer.image.src = `${prefix}/images/${id}/picture`;
    viewer.image.alt = card.dataset.name;
    const mapped = !viewer.map.hidden && viewer.map.getAttribute("src");
    if (card.dataset.map === "yes") viewer.map.src = `${prefix}/images/${id}/map`;
    else viewer.map.removeAttribute("src");
    viewer.map.hidden = !(mapped && card.dataset.map === "yes");
    big.querySelector("[data-do=map]").setAttribute("aria-pressed", String(!viewer.map.hidden));
    big.querySelector("[data-do=more]").href = `${prefix}/images/${id}`;
    describe(card);
    if (!isOpen()) big.showModal();
    viewer.pane.focus();
  }

  function describe(card) {
    const lines = [...card.querySelectorAll(".line")].map((line) => line.textContent.replace(/\s+/g, " ").trim());
    document.querySelector("#big-said").textContent = lines.join(" · ");
  }

  big.addEventListener("close", () => cardOf(current)?.focus());
  big.addEventListener("click", (event) => {
    const name = event.target.closest("[data-do]")?.dataset.do;
    if (!name || name === "more") return;
    if (name === "close") big.close();
    else if (name === "undo") undo();
    else if (!viewer.act(name)) label(name);
  });

  // Keys

  function step(event) {
    const all = cards();
    const place = all.findIndex((card) => card.dataset.id === current);
    if (place < 0) return all[0];
    const across = isOpen() ? 1 : columns(all);
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (event.key === "Home") return all[0];
    if (event.key === "End") return all.at(-1);
    return all[Math.min(all.length - 1, Math.max(0, place + by))];
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea")) return;
    // Enter and space belong to what has the focus, where that is a link, a button or a summary.
    const own = event.target.matches("a, button, summary");
    const card = cardOf(current);
    if (isOpen() && viewer.key(event.key)) {
      event.preventDefault();
      return;
    }
    if (/^Arrow|^Home$|^End$/.test(event.key)) {
      // Zoomed in, the arrows look around in the image.
      if (isOpen() && viewer.zoom > 1) return;
      moveTo(step(event), { range: event.shiftKey && !isOpen() });
    } else if (event.key === "n") label("normal");
    else if (event.key === "a") label("anomaly");
    else if (event.key === "u") undo();
    else if (event.key === "m" && card) card.classList.toggle("mapped");
    else if (event.key === "M") wall.classList.toggle("mapped");
    else if (event.key === "x" && card && !isOpen()) mark(card, card.getAttribute("aria-selected") !== "true");
    else if (event.key === "Escape" && !isOpen()) selectNone();
    else if (event.key === "Enter" && card && !own && !isOpen()) show(card);
    else return;
    event.preventDefault();
  });

  // Mouse and touch

  wall.addEventListener("click", (event) => {
    const card = event.target.closest(".shot");
    if (!card) return;
    const button = event.target.closest("button[name=label]");
    if (button) {
      event.preventDefault();
      label(button.value, card);
    } else if (event.shiftKey) {
      event.preventDefault();
      moveTo(card, { range: true });
    } else if (event.target.closest("a.frame") && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      moveTo(card);
      show(card);
    } else moveTo(card);
  });
  wall.addEventListener("mousedown", (event) => {
    if (event.shiftKey) event.preventDefault(); // selects images, not text
  });
  wall.addEventListener("focusin", (event) => {
    const card = event.target.closest(".shot");
    if (card && card.dataset.id !== current) {
      current = card.dataset.id;
      anchor ??= current;
    }
  });

  const first = cards()[0];
  if (first) {
    current = anchor = first.dataset.id;
    first.tabIndex = 0;
    if (!location.hash && document.activeElement === document.body) first.focus({ preventScroll: true });
  }
});
