// One session: what it is, its calls, its story; and the end of it.

import { Refused, address, ask } from "./api.js";
import { el, replace, said, say } from "./dom.js";
import { bytes, count, moment, money, span } from "./format.js";
import { Poller } from "./poll.js";
import { note, to } from "./route.js";
import { Tail } from "./tail.js";
import { Timeline } from "./timeline.js";
import {
  button, confirm, facts, gap, mono, problemBox, rate, rebadge, stateBadge, tell, toast,
} from "./widgets.js";
import { endSentence, isGoodEnd, stateTone, stateWord } from "./words.js";

const REFRESH_MS = 2000;
const REFRESH_CLOSED_MS = 30000;

function shownFacts(session) {
  const over = session.state === "closed";
  const boot = session.boot_s === null || session.boot_s === undefined ? ""
    : `${session.boot_s.toFixed(2)} s, ${session.warm ? "warm" : "cold"}`;
  const running = session.running ? `, ${count(session.running)} under way` : "";
  const perHour = rate(session.usd_per_hour);
  return [
    ["Server", said(session.server)],
    ["Principal", session.principal],
    ["Client", session.client || "–"],
    ["Opened", `${moment(session.opened)}, ${span(session.age_s)} ago`],
    over ? ["Ended", moment(session.ended)] : ["Idle", span(session.idle_s)],
    ["Calls", `${count(session.calls)}${running}`],
    ["Errors", count(session.errors)],
    ["In, out", `${bytes(session.bytes_in)}, ${bytes(session.bytes_out)}`],
    ["Cost", money(session.usd) + (perHour && !over ? `, ${perHour}` : "")],
    ["Dyno time", session.dyno_s ? span(session.dyno_s) : ""],
    ["Boot", boot],
    ["Link lost", session.parts ? `${count(session.parts)} times` : ""],
    ["Dyno", session.dyno ? mono(session.dyno) : ""],
    ["Launch", session.launch ? mono(session.launch) : ""],
    ["Gateway", mono(session.gateway + (session.here ? ", this one" : ""))],
    ["Last failure", session.failure],
  ];
}

function verdict(node, session) {
  const over = ["closing", "closed"].includes(session.state);
  node.hidden = !over;
  if (!over) return;
  const doing = session.state === "closing" ? "Ending. " : "";
  node.dataset.tone = isGoodEnd(session.reason) ? "over" : "bad";
  replace(node, el("strong", {}, doing + (session.reason ? endSentence(session.reason) : "")), " ",
    session.reason ? el("code", {}, session.reason) : null,
    session.detail ? el("span", { class: "detail" }, said(session.detail)) : null);
}

export function sessionPage(id, query) {
  const heading = el("h1", { class: "mono" }, said(id));
  const state = stateBadge({ state: "requested" });
  const kill = button("End session", { class: "danger", id: "kill", disabled: true });
  const copy = button("Copy id", { "aria-label": "Copy the session’s id" });
  const end = el("p", { class: "verdict", id: "verdict", role: "status", hidden: true });
  const problem = problemBox();
  const list = el("dl", { class: "facts" });
  let shown = null;
  state.hidden = true;

  const timeline = new Timeline((call) => {
    tail.choose(call, () => timeline.choose(call));
    note(["sessions", id], { call: call?.id ?? "" });
  });
  timeline.wanted = query.get("call");
  const tail = new Tail(id, (lines) => timeline.take(lines), () => poller.now());

  const show = (session) => {
    const was = shown?.state;
    shown = session;
    tell(problem, "");
    state.hidden = false;
    rebadge(state, stateTone(session), stateWord(session.state));
    verdict(end, session);
    facts(list, shownFacts(session));
    const over = session.state === "closed";
    kill.disabled = over || session.state === "closing";
    kill.hidden = over;
    poller.everyMs = over ? REFRESH_CLOSED_MS : REFRESH_MS;
    if (!over && was === "closed") tail.again();
    if (over && was && was !== "closed") toast(`${id}: ${endSentence(session.reason)}`);
  };

  const poller = new Poller(async (signal) => {
    show(await ask("GET", address("sessions", id), { signal }));
  }, REFRESH_MS, (error) => {
    tell(problem, error.message);
    if (error instanceof Refused && error.status === 404) {
      kill.disabled = true;
      tail.ended = true;
      tail.hang();
      tail.status("over", "not kept");
      poller.everyMs = REFRESH_CLOSED_MS;
    }
  });

  kill.addEventListener("click", () => {
    const running = shown.running
      ? `Calls under way: ${count(shown.running)}; the client is told that an operator ended them.`
      : "No call is under way.";
    const what = "Its dyno is stopped, and the client has to open another session.";
    confirm(`End ${id}?`, [what, running], "End session", async () => {
      await ask("DELETE", address("sessions", id));
      poller.now();
    });
  });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(id);
      say(copy, "Copied");
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      getSelection().selectAllChildren(heading); // no clipboard without https
    }
  });

  poller.now();
  return {
    title: id,
    filter: tail.search,
    node: el("div", { class: "page session" },
      el("div", { class: "heading" },
        el("a", { class: "back", href: to(["sessions"]), "aria-label": "All sessions" }, "←"),
        heading, state, gap(), copy, kill),
      end, problem, list, el("div", { class: "panels" }, timeline.node, tail.node)),
    pause: () => tail.pause(),
    back() {
      if (tail.search.value) {
        tail.search.value = "";
        tail.sift();
      } else if (timeline.choice) timeline.choose(timeline.choice);
      else location.hash = to(["sessions"]);
    },
    close() {
      poller.close();
      timeline.close();
      tail.close();
    },
  };
}
