// A story, live: follows, pauses, searches. What is kept here and drawn is bounded.

import { door, signedOut, tailAddress } from "./api.js";
import { attribute, el, marked, option, replace, said, say } from "./dom.js";
import { bytes, clock, count, millis } from "./format.js";
import { button, gap, pauseButton } from "./widgets.js";
import { RANK, levelOf, outcomeTone, stateWord } from "./words.js";

const ROWS = 2000;
const DRAW_MS = 100;
const SOONEST_MS = 1000;
const LATEST_MS = 30000;
const SLACK_S = 0.02;

const LEVELS = [
  ["debug", "everything"], ["info", "no messages"], ["warning", "warnings"], ["error", "errors"],
];

const NOT_FACTS = new Set(["n", "at", "event", "text", "payload", "level"]);

// One line of the story, in words. Returns parts: [text, class].
function parts(line) {
  switch (line.event) {
    case "message": {
      const what = line.tool ?? line.method ?? "";
      const rest = [line.kind, bytes(line.bytes)].join(", ");
      return [
        [line.to === "child" ? "→ child " : "→ client ", "way"],
        [what || line.kind, "what"],
        [line.call ? ` ${line.call}` : "", "call-id"],
        [`  ${what ? rest : bytes(line.bytes)}`, "quiet"],
      ];
    }
    case "call":
      return [[line.tool ?? line.method, "what"], [` ${line.call}`, "call-id"],
        [`  ${stateWord(String(line.outcome))}`, `tone-${outcomeTone(line.outcome)}`],
        [`  ${millis(line.ms)}, ${bytes(line.bytes_in)} in, ${bytes(line.bytes_out)} out`, "quiet"],
        [line.code === undefined || line.code === null ? "" : `, code ${line.code}`, "quiet"]];
    case "stderr":
      return [[line.text, "text"], [line.dropped ? `  (${line.dropped} dropped)` : "", "quiet"]];
    default: {
      const facts = Object.entries(line).filter(([name]) => !NOT_FACTS.has(name));
      return facts.flatMap(([name, value]) => [[`${name}=`, "quiet"],
        [`${typeof value === "object" ? JSON.stringify(value) : value}  `, "fact"]]);
    }
  }
}

class Entry {
  constructor(line) {
    this.line = line;
    this.rank = RANK[levelOf(line)] ?? 1;
    this.parts = parts(line);
    this.payload = line.payload ?? "";
    const texts = [line.event, ...this.parts.map(([text]) => text), this.payload];
    this.low = texts.join(" ").toLowerCase();
    this.node = null;
    this.needle = null;
  }

  draw(needle) {
    if (this.node && this.needle === needle) return this.node;
    this.needle = needle;
    const { line } = this;
    const content = this.parts.filter(([text]) => text)
      .map(([text, kind]) => el("bdi", { class: kind }, marked(text, needle)));
    this.node ??= el("li", { data: { level: Object.keys(RANK)[this.rank], event: line.event } });
    replace(this.node, el("time", { title: `line ${line.n}` }, clock(line.at)),
      el("span", { class: "event" }, marked(line.event, needle)),
      el("div", { class: "said" }, content, this.payload
        ? el("pre", { class: "payload" }, marked(this.payload, needle)) : null));
    return this.node;
  }
}

export class Tail {
  // `heard(lines)` gets each line once, in order, even while this is paused; `over()` the end.
  constructor(session, heard, over) {
    this.session = session;
    this.heard = heard;
    this.over = over;
    this.last = 0;
    this.entries = [];
    this.arrived = [];
    this.waiting = [];
    this.lost = 0;
    this.paused = false;
    this.ended = false;
    this.wait = SOONEST_MS;
    this.source = null;
    this.call = null;
    this.build();
    this.drawing = setInterval(() => this.settle(), DRAW_MS);
    this.seen = () => (document.hidden ? this.hang() : this.follow());
    document.addEventListener("visibilitychange", this.seen);
    this.follow();
  }

  build() {
    this.search = el("input", { type: "search", placeholder: "Search this story",
      "aria-label": "Search this story", "aria-keyshortcuts": "f", spellcheck: "false",
      autocomplete: "off" });
    this.only = el("input", { type: "checkbox", checked: true });
    this.level = el("select", { "aria-label": "Least level" },
      LEVELS.map(([value, label]) => option(value, label, "debug")));
    this.pauser = pauseButton(() => this.pause());
    this.found = el("span", { class: "quiet", role: "status" });
    this.state = el("span", { class: "following", role: "status", data: { is: "away" } },
      "connecting");
    this.chosen = button("", { class: "chip", hidden: true, "aria-pressed": "true" });
    this.chosen.addEventListener("click", () => this.unchoose?.());
    this.list = el("ol", { class: "lines", tabindex: "0", data: { scrolls: "" }, role: "log",
      "aria-label": "Lines of the story", "aria-live": "off" });
    this.jump = button("↓ newest", { class: "plain to-end", hidden: true });
    this.jump.addEventListener("click", () => this.toEnd());
    this.list.addEventListener("scroll", () => (this.jump.hidden = this.atEnd()));
    this.node = el("section", { class: "panel tail", "aria-labelledby": "tail-title" },
      el("div", { class: "bar-of-panel" }, el("h2", { id: "tail-title" }, "Story"), this.state,
        this.chosen, gap(), this.found, this.search,
        el("label", { class: "check" }, this.only, "matches only"), this.level, this.pauser),
      el("div", { class: "lines-box" }, this.list, this.jump));
    let typing = null;
    this.search.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.sift(), 120);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.nextMatch(event.shiftKey ? -1 : 1);
    });
    for (const each of [this.only, this.level]) each.addEventListener("change", () => this.sift());
  }

  // Following

  follow() {
    clearTimeout(this.retry);
    if (this.ended || this.source || this.closed) return;
    const source = new EventSource(tailAddress(this.session, this.last));
    this.source = source;
    source.addEventListener("open", () => {
      this.wait = SOONEST_MS;
      this.status("live", "following");
    });
    source.addEventListener("message", (event) => {
      this.take(JSON.parse(event.data), event.lastEventId);
    });
    source.addEventListener("end", () => {
      this.ended = true;
      this.hang();
      this.status("over", "complete");
      this.over();
    });
    source.addEventListener("error", () => this.broken(source));
  }

  // The browser goes on by itself from a broken connection, and never from a refusal.
  broken(source) {
    if (this.source !== source) return;
    if (source.readyState !== EventSource.CLOSED) {
      this.status("away", "reconnecting");
      return;
    }
    this.hang();
    this.status("away", `not now, again in ${Math.round(this.wait / 1000)} s`);
    this.retry = setTimeout(() => this.follow(), this.wait);
    this.wait = Math.min(LATEST_MS, this.wait * 2);
    door("GET", "me").then(({ authenticated }) => {
      if (!authenticated && !this.closed) signedOut.dispatchEvent(new Event("out"));
    }, () => {}); // it is away, and the page says so
  }

  // It was over, and its client has come back to it.
  again() {
    if (!this.ended) return;
    this.ended = false;
    this.follow();
  }

  hang() {
    clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
  }

  status(is, text) {
    this.state.dataset.is = is;
    say(this.state, text);
  }

  take(line, id) {
    const number = Number(id) || line.n; // one that goes back is of a story that began anew
    const missed = this.last && number > this.last ? number - this.last - 1 : 0;
    this.last = number;
    if (missed > 0) {
      this.arrived.push(new Entry({ n: number - 1, at: line.at, event: "gap", dropped: missed }));
    }
    this.arrived.push(new Entry({ n: number, ...line }));
    if (this.arrived.length > 2 * ROWS) this.settle();
  }

  settle() {
    if (!this.arrived.length) return;
    const arrived = this.arrived.splice(0);
    this.heard(arrived.map(({ line }) => line));
    this.waiting.push(...arrived);
    this.lost += this.waiting.splice(0, Math.max(0, this.waiting.length - ROWS)).length;
    if (this.paused) this.showPause();
    else this.release();
  }

  release() {
    const end = this.atEnd();
    const fresh = this.waiting.splice(0);
    this.entries.push(...fresh);
    const old = this.entries.splice(0, Math.max(0, this.entries.length - ROWS));
    for (const entry of old) entry.node?.remove();
    const needle = this.needle();
    const shown = fresh.filter((entry) => this.shows(entry, needle));
    this.list.append(...shown.map((entry) => entry.draw(needle)));
    if (needle) this.tellFound(needle);
    if (end) this.toEnd();
  }

  // Pausing

  pause() {
    this.paused = !this.paused;
    if (!this.paused) {
      if (this.lost) {
        const { at } = this.waiting[0].line;
        this.waiting.unshift(new Entry({ at, event: "gap", dropped: this.lost }));
        this.lost = 0;
      }
      this.release();
    }
    this.showPause();
  }

  showPause() {
    attribute(this.pauser, "aria-pressed", String(this.paused));
    const number = this.waiting.length + this.lost;
    say(this.pauser, this.paused ? `Go on · ${count(number)} waiting` : "Pause");
  }

  // Searching

  needle() {
    return this.search.value.trim().toLowerCase();
  }

  shows(entry, needle) {
    if (entry.rank < RANK[this.level.value]) return false;
    if (this.call !== null && !this.belongs(entry.line)) return false;
    return !needle || !this.only.checked || entry.low.includes(needle);
  }

  // Clients use an id again, so time counts too. A child's own words have no id: those that came
  // while the call ran are shown with it.
  belongs(line) {
    if (line.call && line.call !== this.call.id) return false;
    return line.at >= this.call.start - SLACK_S && line.at <= (this.call.end ?? Infinity) + SLACK_S;
  }

  sift() {
    const needle = this.needle();
    const shown = this.entries.filter((entry) => this.shows(entry, needle));
    this.list.replaceChildren(...shown.map((entry) => entry.draw(needle)));
    this.tellFound(needle);
    if (!needle) this.toEnd();
    else this.list.querySelector("mark")?.scrollIntoView({ block: "nearest" });
  }

  tellFound(needle) {
    const number = this.entries.filter((entry) => needle && this.shows(entry, needle)
      && entry.low.includes(needle)).length;
    say(this.found, needle ? `${count(number)} ${number === 1 ? "line" : "lines"}` : "");
  }

  nextMatch(by) {
    const marks = [...this.list.querySelectorAll("mark")];
    if (!marks.length) return;
    const before = marks.indexOf(this.list.querySelector("mark.here"));
    marks[before]?.classList.remove("here");
    const mark = marks[(before + by + marks.length) % marks.length];
    mark.classList.add("here");
    mark.scrollIntoView({ block: "nearest" });
  }

  choose(call, unchoose) {
    this.call = call;
    this.unchoose = unchoose;
    this.chosen.hidden = !call;
    if (call) replace(this.chosen, "only call ", said(call.id, { class: "mono" }), " ✕");
    this.sift();
  }

  atEnd() {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 32;
  }

  toEnd() {
    this.list.scrollTop = this.list.scrollHeight;
    this.jump.hidden = true;
  }

  close() {
    this.closed = true;
    this.hang();
    clearInterval(this.drawing);
    document.removeEventListener("visibilitychange", this.seen);
  }
}
