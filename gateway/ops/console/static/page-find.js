// Find a session, a call or a dyno: in the list, in the failures, and in the newest stories.

import { Away, Refused, ask, story } from "./api.js";
import { el, replace, said, say } from "./dom.js";
import { clock, count, millis, span } from "./format.js";
import { COLUMNS as FAILURE_COLUMNS, failureRow } from "./page-failures.js";
import { toSession } from "./route.js";
import { badge, mono, problemBox, row, sessionLink, stateBadge, table, tell } from "./widgets.js";
import { outcomeTone, stateWord } from "./words.js";

const STORIES = 30;
const AT_ONCE = 3;

const SESSION_COLUMNS = [
  ["State", "c-state"], ["Session", "c-id"], ["Server", "c-server"], ["Principal", "c-who"],
  ["Client", "c-client"], ["Age", "num"], ["Calls", "num"],
];

const CALL_COLUMNS = [
  ["Outcome", "c-state"], ["Session", "c-id"], ["Call", "c-call"], ["Tool", "c-tool"],
  ["When", "c-when"], ["Took", "num"],
];

function sessionRow(session) {
  return row(SESSION_COLUMNS, [
    stateBadge(session), sessionLink(session.session), said(session.server),
    said(session.principal), said(session.client || "–"), span(session.age_s),
    count(session.calls),
  ], { class: "opens" });
}

function callRow(session, line) {
  const outcome = line.event === "call" ? line.outcome : "running";
  return row(CALL_COLUMNS, [
    badge(outcomeTone(outcome), stateWord(outcome)), sessionLink(session, line.call),
    mono(line.call), said(line.tool || line.method || ""), clock(line.at), millis(line.ms),
  ], { class: "opens" });
}

// The newest line of each call of this id: its end, if it has one.
function callsIn(lines, id) {
  const about = lines.filter((line) => line.call === id);
  const asked = about.filter((line) => line.kind === "request");
  const ended = about.filter((line) => line.event === "call");
  return ended.length ? ended : asked.slice(-1);
}

function section(title, list) {
  const node = el("section", { hidden: true }, el("h2", {}, title), list.node);
  return { node, add: (rows) => {
    node.hidden = node.hidden && !rows.length;
    list.body.append(...rows);
  }, first: (rows) => {
    node.hidden = node.hidden && !rows.length;
    list.body.prepend(...rows);
  } };
}

export function findPage(query) {
  const text = query.get("q") ?? "";
  const closing = new AbortController();
  const { signal } = closing;
  const state = el("p", { class: "quiet", role: "status" }, "Looking …");
  const problem = problemBox();
  const calls = section("Calls of this id", table("Calls", CALL_COLUMNS));
  const failures = section("Failures", table("Failures", FAILURE_COLUMNS));
  const sessions = section("Sessions", table("Sessions", SESSION_COLUMNS));
  let found = 0;

  async function searchStories(ids) {
    const left = [...ids];
    const one = async () => {
      for (let id = left.shift(); id !== undefined; id = left.shift()) {
        const lines = await story(id, { q: text }, signal).catch((error) => {
          if (error instanceof Refused && error.status === 404) return []; // forgotten meanwhile
          throw error;
        });
        for (const line of callsIn(lines, text)) {
          found += 1;
          const failed = line.event === "call" && outcomeTone(line.outcome) === "bad";
          calls[failed ? "first" : "add"]([callRow(id, line)]);
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, one));
  }

  async function look() {
    const [known, failed, newest] = await Promise.all([
      ask("GET", "/sessions", { query: { q: text, limit: 50 }, signal }),
      ask("GET", "/failures", { query: { q: text, limit: 50 }, signal }),
      ask("GET", "/sessions", { query: { limit: STORIES }, signal }),
    ]);
    if (known.sessions.length === 1 && known.sessions[0].session === text) {
      location.replace(toSession(text));
      return;
    }
    found += known.sessions.length + failed.failures.length;
    sessions.add(known.sessions.map(sessionRow));
    failures.add(failed.failures.map(failureRow));
    const ids = new Set([...failed.failures.map((each) => each.session).filter(Boolean),
      ...newest.sessions.map((each) => each.session)]);
    say(state, `Looking for the call in ${count(ids.size)} stories …`);
    await searchStories(ids);
    const where = `in the failures, the sessions and the ${count(ids.size)} newest stories`;
    say(state, found ? `${count(found)} found ${where}.` : `Nothing is called that ${where}.`);
  }

  async function start() {
    try {
      await look();
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refused || error instanceof Away)) throw error;
      say(state, "");
      tell(problem, error.message);
    }
  }

  const box = document.getElementById("find-text");
  if (box.value !== text) box.value = text;
  if (text) start();
  else replace(state, "Type what you look for into the box above, and press Enter.");
  return {
    title: `Find ${text}`,
    filter: box,
    node: el("div", { class: "page" }, el("h1", {}, "Find ", said(text, { class: "mono" })),
      state, problem, failures.node, calls.node, sessions.node),
    back: () => history.back(),
    close: () => closing.abort(new DOMException("left", "AbortError")),
  };
}
