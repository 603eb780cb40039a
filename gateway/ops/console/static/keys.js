// The keyboard. Rows of every list are links with `data-row`, so that Enter needs nobody's help.

import { el } from "./dom.js";
import { dialog } from "./widgets.js";

const HELP = [
  ["/", "find a session, a call or a dyno"],
  ["f", "filter this list, or search this story"],
  ["j k or ↓ ↑", "next, previous row"],
  ["Enter", "open the row"],
  ["Esc", "leave a field, go back"],
  ["p", "pause, go on"],
  ["g s · g f · g r · g p", "sessions, failures, servers, pool & spend"],
  ["?", "this help"],
];

const GO = { s: "#/sessions", f: "#/failures", r: "#/servers", p: "#/spend" };

export function showHelp() {
  const rows = HELP.map(([keys, what]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, what)]);
  dialog("Keyboard", [el("dl", { class: "keys" }, rows)]);
}

function step(by) {
  const all = [...document.querySelectorAll("#main [data-row]")];
  const rows = all.filter((row) => row.checkVisibility());
  if (!rows.length) return;
  const place = rows.indexOf(document.activeElement?.closest?.("[data-row]"));
  const next = place < 0 ? (by > 0 ? 0 : rows.length - 1) : place + by;
  const row = rows[Math.min(rows.length - 1, Math.max(0, next))];
  row.focus({ preventScroll: true });
  (row.closest("tr") ?? row).scrollIntoView({ block: "nearest" });
}

function focusOn(node) {
  node?.focus();
  node?.select?.();
}

function escape(page) {
  const field = document.activeElement;
  if (field?.matches("input, select")) {
    field.blur();
    document.getElementById("main").focus({ preventScroll: true });
  } else page()?.back?.();
}

// `page()` returns the page that is shown: what it does on `pause`, `back` and `filter`.
export function listen(page) {
  let going = -Infinity; // when g was pressed
  const simple = {
    "/": () => focusOn(document.getElementById("find-text")),
    f: () => focusOn(page()?.filter),
    j: () => step(1),
    k: () => step(-1),
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    p: () => page()?.pause?.(),
    "?": showHelp,
  };
  addEventListener("keydown", (event) => {
    const shown = page() && !document.querySelector("dialog[open]");
    if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      escape(page);
      return;
    }
    if (event.target.matches("input, select, textarea")) return;
    if (event.target.closest("[data-scrolls]") && event.key.startsWith("Arrow")) return;
    const soon = event.timeStamp - going < 1500;
    const act = soon && GO[event.key] ? () => (location.hash = GO[event.key]) : simple[event.key];
    going = event.key === "g" ? event.timeStamp : -Infinity;
    if (!act) return;
    event.preventDefault();
    act();
  });
}
