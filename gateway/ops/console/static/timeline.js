// The calls of a session as bars: when each began, how long it took, what became of it.
//
// Sessions are mostly silent, so silence is folded: a pause in which no call runs is drawn as a
// thin gap, and the bars stay in proportion to each other.

import { arrange, attribute, el, said, say, svg } from "./dom.js";
import { bytes, clock, millis, moment, now } from "./format.js";
import { badge, rebadge } from "./widgets.js";
import { outcomeTone, stateWord } from "./words.js";

const KEPT = 400;
const SHOWN = 120;
const FOLD = 4; // per cent of the width, at most, that a pause takes
const THINNEST = 0.6;

class Call {
  constructor(line) {
    this.id = line.call;
    this.begin(line);
    this.end = null;
    this.outcome = "running";
    this.ms = null;
    this.node = null;
  }

  begin(line) {
    this.tool = line.tool ?? null;
    this.method = line.method ?? "";
    this.start = line.at;
  }

  finish(line) {
    this.end = line.at;
    this.outcome = line.outcome;
    this.ms = line.ms;
    this.start = Math.min(this.start, line.at - line.ms / 1000);
    this.note = [line.code === undefined || line.code === null ? "" : `code ${line.code}`,
      `${bytes(line.bytes_in)} in`, `${bytes(line.bytes_out)} out`].filter(Boolean).join(", ");
  }

  draw(choose) {
    this.name = said(this.tool ?? this.method, { class: "what" });
    this.number = said(this.id, { class: "mono call-id", title: "id of the call" });
    this.bar = svg("rect", { y: "20%", height: "60%", rx: 2 });
    this.took = el("span", { class: "num" });
    this.state = badge("busy", "");
    this.node = el("button", { type: "button", class: "call", data: { row: "" },
      "aria-pressed": "false" }, this.name, this.number,
    svg("svg", { class: "bar", "aria-hidden": "true", focusable: "false" }, this.bar),
    this.took, this.state);
    this.node.addEventListener("click", () => choose(this));
  }

  show(place, chosen) {
    const tone = outcomeTone(this.outcome);
    const lasting = (this.end ?? now()) - this.start;
    this.node.dataset.tone = tone;
    attribute(this.node, "aria-pressed", String(chosen));
    attribute(this.bar, "x", `${place.x.toFixed(2)}%`);
    attribute(this.bar, "width", `${place.width.toFixed(2)}%`);
    say(this.took, this.end === null ? `${Math.max(0, lasting).toFixed(1)} s` : millis(this.ms));
    rebadge(this.state, tone, stateWord(this.outcome));
    const title = `${this.method}, at ${clock(this.start)}, ${this.note ?? "runs"}`;
    attribute(this.node, "title", title);
  }
}

// Where each call is on a line of 100 per cent: [{x, width}], for calls in order of start.
export function scale(calls, at) {
  const cuts = [];
  let reach = -Infinity;
  for (const call of calls) {
    const end = Math.max(call.end ?? at, call.start);
    if (call.start > reach) cuts.push({ from: call.start, to: end });
    else cuts.at(-1).to = Math.max(cuts.at(-1).to, end);
    reach = Math.max(reach, end);
  }
  const busy = cuts.reduce((sum, cut) => sum + (cut.to - cut.from), 0) || 0.001;
  const fold = cuts.length > 1 ? Math.min(FOLD, 50 / (cuts.length - 1)) : 0;
  const unit = (100 - THINNEST - fold * (cuts.length - 1)) / busy;
  let x = 0;
  for (const cut of cuts) {
    cut.x = x;
    x += (cut.to - cut.from) * unit + fold;
  }
  let current = 0;
  return calls.map((call) => {
    while (current + 1 < cuts.length && call.start >= cuts[current + 1].from) current += 1;
    const cut = cuts[current];
    const end = Math.max(call.end ?? at, call.start);
    return {
      x: cut.x + (call.start - cut.from) * unit,
      width: Math.max(THINNEST, (end - call.start) * unit),
    };
  });
}

export class Timeline {
  // `chosen(call)` hears which call is chosen; null when none is.
  constructor(chosen) {
    this.calls = [];
    this.dropped = 0;
    this.chosen = chosen;
    this.choice = null;
    this.wanted = null; // the id of a call that is to be chosen when it comes
    this.failing = false;
    this.dirty = true;
    this.list = el("div", { class: "calls", role: "group", "aria-label": "Calls, oldest first" });
    this.axis = el("p", { class: "axis quiet" }, el("span"), el("span"), el("span"));
    this.only = el("button", { type: "button", class: "chip", "aria-pressed": "false",
      data: { tone: "bad" } }, el("i", { "aria-hidden": "true" }), "failing only");
    this.only.addEventListener("click", () => {
      this.failing = !this.failing;
      attribute(this.only, "aria-pressed", String(this.failing));
      this.render(true);
    });
    this.node = el("section", { class: "panel timeline", "aria-labelledby": "calls-title" },
      el("div", { class: "bar-of-panel" }, el("h2", { id: "calls-title" }, "Calls"), this.only),
      this.list, this.axis);
    this.timer = setInterval(() => this.render(), 400);
  }

  take(lines) {
    for (const line of lines) this.hear(line);
    this.render();
  }

  hear(line) {
    if (line.event === "requested") this.abandon(line.at);
    else if (line.event === "message" && line.to === "child" && line.kind === "request") {
      this.add(new Call(line));
    } else if (line.event === "call") this.finish(line);
    else if (line.event === "closed") this.abandon(line.at);
    else return;
    this.dirty = true;
  }

  add(call) {
    this.calls.push(call);
    if (this.calls.length > KEPT) {
      this.calls.shift();
      this.dropped += 1;
    }
    if (this.wanted !== null && call.id === this.wanted) this.choose(call);
  }

  finish(line) {
    let call = this.calls.findLast((each) => each.end === null && each.id === line.call);
    if (!call) {
      call = new Call(line);
      call.start = line.at - line.ms / 1000;
      this.add(call);
    }
    call.finish(line);
  }

  // What was under way then will not be answered any more.
  abandon(at) {
    for (const call of this.calls) {
      if (call.end === null) {
        Object.assign(call, { end: at, outcome: "unanswered", ms: (at - call.start) * 1000 });
      }
    }
  }

  choose(call) {
    this.choice = call === this.choice ? null : call;
    this.wanted = null;
    this.render(true);
    this.choice?.node?.scrollIntoView({ block: "nearest" });
    this.chosen(this.choice);
  }

  render(anyway = false) {
    const running = this.calls.some((call) => call.end === null);
    if (!(anyway || this.dirty || running) || document.hidden) return;
    this.dirty = false;
    const some = this.failing
      ? this.calls.filter((call) => outcomeTone(call.outcome) === "bad") : [...this.calls];
    some.sort((one, other) => one.start - other.start);
    const shown = some.slice(-SHOWN);
    if (this.choice && !shown.includes(this.choice) && some.includes(this.choice)) {
      shown[0] = this.choice;
    }
    const places = scale(shown, now());
    const end = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 24;
    const nodes = shown.map((call, place) => {
      if (!call.node) call.draw((each) => this.choose(each));
      call.show(places[place], call === this.choice);
      return call.node;
    });
    if (nodes.length) arrange(this.list, nodes);
    else this.none();
    if (end && !this.choice) this.list.scrollTop = this.list.scrollHeight;
    const [first, middle, last] = this.axis.children;
    say(first, shown.length ? moment(shown[0].start) : "");
    const hidden = some.length - shown.length + this.dropped;
    say(middle, hidden ? `${hidden} earlier are not shown` : "");
    say(last, shown.length > 1 ? moment(shown.at(-1).end ?? now()) : "");
  }

  none() {
    const text = this.failing ? "No call has failed." : "No call yet.";
    arrange(this.list, [el("p", { class: "quiet none" }, text)]);
  }

  close() {
    clearInterval(this.timer);
  }
}
