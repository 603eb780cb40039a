// Small parts that several pages have.

import { Away, Refused } from "./api.js";
import { el, replace, said, say, svg } from "./dom.js";
import { toSession } from "./route.js";
import { stateTone, stateWord } from "./words.js";

let hiding = null;

export function toast(text) {
  const node = document.getElementById("toast");
  say(node, text);
  node.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (node.hidden = true), 6000);
}

// A badge that always has a word too: colours alone tell nothing to many people.
export function badge(tone, word) {
  return el("span", { class: "badge", data: { tone } }, el("i", { "aria-hidden": "true" }),
    el("span", {}, word));
}

export function rebadge(node, tone, word) {
  if (node.dataset.tone !== tone) node.dataset.tone = tone;
  say(node.lastElementChild, word);
}

export function stateBadge(session) {
  return badge(stateTone(session), stateWord(session.state));
}

// A modal dialog; the browser keeps the focus inside and gives it back.
export function dialog(title, content, actions = []) {
  const close = button(actions.length ? "Cancel" : "Close");
  const node = el("dialog", { "aria-labelledby": "dialog-title" },
    el("h2", { id: "dialog-title" }, title), content,
    el("div", { class: "actions" }, close, actions));
  close.addEventListener("click", () => node.close());
  node.addEventListener("close", () => node.remove());
  document.body.append(node);
  node.showModal();
  close.focus();
  return node;
}

// Ask before something that cannot be undone; `act` runs while the dialog waits.
export function confirm(title, sentences, label, act) {
  const problem = el("p", { class: "problem", role: "alert" });
  const yes = button(label, { class: "danger", id: "confirm" });
  const paragraphs = sentences.map((sentence) => el("p", {}, sentence));
  const node = dialog(title, [paragraphs, problem], [yes]);
  yes.addEventListener("click", async () => {
    yes.disabled = true;
    try {
      await act();
      node.close();
    } catch (error) {
      if (!(error instanceof Refused || error instanceof Away)) throw error;
      say(problem, error.message);
      yes.disabled = false;
    }
  });
}

export function problemBox() {
  return el("p", { class: "problem", role: "alert", hidden: true });
}

export function tell(box, message) {
  box.hidden = !message;
  say(box, message);
}

// Facts as pairs of a term and what it is; empty ones are left out.
export function facts(node, pairs) {
  const shown = pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  replace(node, shown.map(([term, value]) => el("div", {}, el("dt", {}, term),
    el("dd", {}, value instanceof Node ? value : said(value)))));
}

// A table in a box that scrolls by itself, if anything has to.
export function table(caption, columns) {
  const body = el("tbody");
  const heads = columns.map(([label, kind]) => el("th", { scope: "col", class: kind }, label));
  const node = el("div", { class: "scroll" }, el("table", {},
    el("caption", { class: "only-read" }, caption), el("thead", {}, el("tr", {}, heads)), body));
  return { node, body };
}

// A row of such a table; on a phone each cell says which column it is.
export function row(columns, cells, attributes = {}) {
  return el("tr", attributes, cells.map((cell, place) => {
    const [label, kind] = columns[place];
    return el("td", { class: kind, data: { label } }, cell);
  }));
}

export function empty(body, columns, sentence) {
  replace(body, el("tr", { class: "none" }, el("td", { colspan: columns.length }, sentence)));
}

export function mono(value, attributes = {}) {
  return said(value, { class: "mono", ...attributes });
}

// A bar of a share; it says the same in words to those who do not see it.
export function gauge(label, value, most) {
  const share = most ? Math.min(1, value / most) : 0;
  const percent = Math.round(share * 100);
  const tone = share > 0.8 ? "warn" : "good";
  const words = `${label}: ${percent} %`;
  return svg("svg", { class: "gauge", role: "img", "aria-label": words, data: { tone } },
    svg("rect", { class: "whole", width: "100%", height: "100%", rx: 3 }),
    svg("rect", { class: "part", width: `${percent}%`, height: "100%", rx: 3 }));
}

export function button(label, attributes = {}) {
  return el("button", { type: "button", class: "plain", ...attributes }, label);
}

export function pauseButton(change) {
  const node = button("Pause", { "aria-pressed": "false", "aria-keyshortcuts": "p" });
  node.addEventListener("click", change);
  return node;
}

// What pushes all that follows it in a bar to the other end.
export function gap() {
  return el("span", { class: "gap" });
}

// The way to a session, or to one call of it; a row that the keys walk to.
export function sessionLink(session, call) {
  if (!session) return "–";
  return el("a", { href: toSession(session, call), class: "mono", data: { row: "" } },
    said(session));
}

export function rate(usd) {
  return usd ? `$${usd.toFixed(usd < 0.1 ? 4 : 2)}/h` : "";
}
