// What went wrong, by cause, with where to look.

import { ask } from "./api.js";
import { el, option, replace, said, say } from "./dom.js";
import { count, moment } from "./format.js";
import { Poller } from "./poll.js";
import { note } from "./route.js";
import {
  empty, gap, mono, pauseButton, problemBox, row, sessionLink, table, tell,
} from "./widgets.js";
import { stateWord } from "./words.js";

const REFRESH_MS = 5000;
const MOST = 200;

export const COLUMNS = [
  ["When", "c-when"], ["Cause", "c-cause"], ["Server", "c-server"], ["Principal", "c-who"],
  ["Session", "c-id"], ["Call", "c-call"], ["Tool", "c-tool"], ["Detail", "c-detail"],
];

// One failure as a row; its call, if there is one, leads into the session's story.
export function failureRow(failure) {
  return row(COLUMNS, [
    moment(failure.at), el("code", {}, failure.cause), said(failure.server),
    said(failure.principal), sessionLink(failure.session, failure.call),
    failure.call ? mono(failure.call) : "", said(failure.tool || failure.method),
    said(failure.detail),
  ], { class: "opens" });
}

function group(cause) {
  const last = moment(cause.last);
  const when = cause.count > 1 ? `${moment(cause.first)} to ${last}` : last;
  return el("li", { class: "group" },
    el("h3", {}, el("b", { class: "num" }, count(cause.count)),
      el("span", {}, stateWord(cause.cause)),
      cause.server ? said(cause.server, { class: "quiet" }) : null),
    el("p", { class: "hint" }, cause.hint),
    cause.example ? el("pre", { class: "example" }, cause.example) : null,
    el("p", { class: "quiet" }, when, cause.sessions.length ? " · " : "",
      cause.sessions.map((session, place) => [place ? ", " : "", sessionLink(session)])));
}

export function failuresPage(query) {
  const wanted = { q: query.get("q") ?? "", server: query.get("server") ?? "" };
  const groups = el("ul", { class: "groups" });
  const list = table("Failures, newest first", COLUMNS);
  const problem = problemBox();
  const filter = el("input", { type: "search", placeholder: "Filter", value: wanted.q,
    "aria-label": "Filter failures", "aria-keyshortcuts": "f", autocomplete: "off",
    spellcheck: "false" });
  const server = el("select", { "aria-label": "Server" }, option("", "all servers", wanted.server));
  const pauser = pauseButton(() => page.pause());
  const total = el("span", { class: "quiet", role: "status" });
  let before = "";
  let names = "";
  let typing = null;

  const poller = new Poller(async (signal) => {
    const answer = await ask("GET", "/failures", { query: { ...wanted, limit: MOST }, signal });
    tell(problem, "");
    const now = JSON.stringify(answer);
    if (now === before) return; // nobody loses their place for nothing
    before = now;
    say(total, `${count(answer.failures.length)} shown`);
    replace(groups, answer.groups.length ? answer.groups.map(group)
      : el("li", { class: "quiet none" }, "Nothing has failed."));
    if (answer.failures.length) replace(list.body, answer.failures.map(failureRow));
    else empty(list.body, COLUMNS, "Nothing has failed.");
    const known = [...new Set(answer.groups.map((each) => each.server).filter(Boolean))].sort();
    if (!wanted.server && known.join("\n") !== names) {
      names = known.join("\n");
      replace(server, option("", "all servers", ""), known.map((name) => option(name, name, "")));
    }
  }, REFRESH_MS, (error) => tell(problem, error.message));

  const change = (changes) => {
    Object.assign(wanted, changes);
    note(["failures"], wanted);
    poller.now();
  };
  filter.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: filter.value.trim() }), 200);
  });
  server.addEventListener("change", () => change({ server: server.value }));
  poller.now();
  const page = {
    title: "Failures",
    filter,
    node: el("div", { class: "page" },
      el("div", { class: "toolbar" }, el("h1", {}, "Failures"), total, gap(), filter, server,
        pauser),
      problem, groups, el("h2", {}, "One by one"), list.node),
    pause() {
      poller.pause(!poller.paused);
      pauser.setAttribute("aria-pressed", String(poller.paused));
      say(pauser, poller.paused ? "Go on" : "Pause");
    },
    back() {
      filter.value = server.value = "";
      change({ q: "", server: "" });
    },
    close() {
      clearTimeout(typing);
      poller.close();
    },
  };
  return page;
}
