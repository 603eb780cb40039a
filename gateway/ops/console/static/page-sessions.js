// What runs: all sessions, live.

import { ask } from "./api.js";
import { arrange, el, option, replace, said, say } from "./dom.js";
import { count, money, now, span } from "./format.js";
import { Poller } from "./poll.js";
import { note } from "./route.js";
import {
  button, empty, pauseButton, problemBox, rate, rebadge, row, sessionLink, stateBadge, table, tell,
} from "./widgets.js";
import { STATES, stateTone, stateWord } from "./words.js";

const REFRESH_MS = 2000;
const OVERVIEW_MS = 10000;
const PAGE = 50;

const COLUMNS = [
  ["State", "c-state"], ["Session", "c-id"], ["Server", "c-server"], ["Principal", "c-who"],
  ["Client", "c-client"], ["Age", "num"], ["Idle", "num"], ["Calls", "num"], ["Errors", "num"],
  ["Cost", "num"],
];

const SORTS = [
  ["newest", "newest"], ["idle", "longest idle"], ["calls", "most calls"],
  ["errors", "most errors"], ["cost", "dearest"], ["age", "oldest"],
];

const SHOWN = [["true", "Live"], ["false", "Ended"], ["", "All"]];

class Row {
  constructor(session) {
    this.badge = stateBadge(session);
    this.link = sessionLink(session.session);
    const [server, who, client] = [said(session.server), said(session.principal), said("")];
    const numbers = Array.from({ length: 5 }, () => el("span"));
    this.texts = [server, who, client, ...numbers];
    this.node = row(COLUMNS, [this.badge, this.link, ...this.texts], { class: "opens" });
    this.node.addEventListener("click", (event) => {
      if (!event.target.closest("a") && !String(getSelection())) this.link.click();
    });
    this.show(session);
  }

  show(session) {
    const over = session.state === "closed";
    const word = over && session.reason ? stateWord(session.reason) : stateWord(session.state);
    rebadge(this.badge, stateTone(session), word);
    const running = session.running ? ` +${session.running}` : "";
    const texts = [
      session.server, session.principal, session.client || "–", span(session.age_s),
      over ? "–" : span(session.idle_s), count(session.calls) + running, count(session.errors),
      money(session.usd),
    ];
    texts.forEach((text, place) => say(this.texts[place], text));
    this.texts[6].parentElement.classList.toggle("bad", session.errors > 0);
    this.texts[5].title = running ? `${session.running} under way` : "";
  }
}

function tile(label, href) {
  const value = el("strong", {}, "–");
  const more = el("span", { class: "quiet" });
  const node = el("a", { class: "tile", href }, el("span", { class: "label" }, label), value, more);
  return { node, show: (text, rest, tone = "") => {
    say(value, text);
    say(more, rest);
    node.dataset.tone = tone;
  } };
}

// The four figures above the table: what runs, what it costs, what went wrong.
function overview() {
  const live = tile("Live sessions", "#/sessions");
  const work = tile("At work", "#/sessions?state=ready");
  const cost = tile("Spend this month", "#/spend");
  const failed = tile("Failures, last hour", "#/failures");
  const node = el("section", { class: "tiles", "aria-label": "At a glance" },
    live.node, work.node, cost.node, failed.node);
  const poller = new Poller(async (signal) => {
    const [ledger, failures] = await Promise.all([
      ask("GET", "/ledger", { signal }), ask("GET", "/failures", { query: { limit: 200 }, signal }),
    ]);
    const { budget_usd: budget, spent_usd: spent } = ledger.budgets.overall;
    const hourly = ledger.running.reduce((sum, entry) => sum + entry.usd_per_hour, 0);
    const of = budget === null ? "no budget" : `of ${money(budget)}`;
    cost.show(money(spent), [of, rate(hourly)].filter(Boolean).join(" · "),
      budget !== null && spent > budget * 0.8 ? "warn" : "");
    const recent = failures.failures.filter((failure) => failure.at > now() - 3600);
    const causes = new Set(recent.map((failure) => failure.cause)).size;
    const many = recent.length >= 200 ? "200+" : count(recent.length);
    failed.show(many, causes ? `${causes} ${causes === 1 ? "cause" : "causes"}` : "all is well",
      recent.length ? "bad" : "");
  }, OVERVIEW_MS, (error) => cost.show("–", error.message));
  return { node, poller, counted: (by, sessions) => {
    const total = Object.entries(by).filter(([state]) => state !== "closed")
      .reduce((sum, [, number]) => sum + number, 0);
    const queued = by.queued ? `${by.queued} queued` : "";
    const boots = (by.launching ?? 0) + (by.dialled_in ?? 0);
    live.show(count(total), [boots ? `${boots} booting` : "", queued].filter(Boolean).join(" · ")
      || `${count(by.idle ?? 0)} idle`);
    const running = sessions.reduce((sum, session) => sum + session.running, 0);
    work.show(count(by.ready ?? 0), running ? `${count(running)} calls under way here` : "");
  } };
}

export function sessionsPage(query) {
  const wanted = {
    live: (query.get("live") ?? "true").replace("all", ""), state: query.get("state") ?? "",
    server: query.get("server") ?? "", q: query.get("q") ?? "",
    sort: query.get("sort") ?? "newest",
  };
  const cursors = [""];
  const rows = new Map();
  const glance = overview();
  const list = table("Sessions", COLUMNS);
  const problem = problemBox();
  const total = el("span", { class: "quiet", role: "status" });
  const back = button("← Page before");
  const on = button("Next page →");
  const pager = el("div", { class: "pager" }, total, back, on);
  let next = null;

  const show = (answer) => {
    tell(problem, "");
    next = answer.next;
    glance.counted(answer.by_state, answer.sessions);
    countStates(answer.by_state);
    if (answer.sessions.length) {
      const nodes = answer.sessions.map((session) => {
        const known = rows.get(session.session);
        known?.show(session);
        const shown = known ?? new Row(session);
        rows.set(session.session, shown);
        return shown.node;
      });
      const there = new Set(answer.sessions.map((session) => session.session));
      for (const id of rows.keys()) if (!there.has(id)) rows.delete(id);
      arrange(list.body, nodes);
    } else {
      rows.clear();
      empty(list.body, COLUMNS, wanted.q || wanted.state || wanted.server
        ? "No session is like that." : "No session. They appear here by themselves.");
    }
    const first = (cursors.length - 1) * PAGE;
    const last = first + answer.sessions.length;
    say(total, last ? `${count(first + 1)}–${count(last)} of ${count(answer.total)}` : "");
    back.disabled = cursors.length === 1;
    on.disabled = !next;
    pager.classList.toggle("single", cursors.length === 1 && !next);
  };

  const poller = new Poller(async (signal) => {
    const query = { ...wanted, limit: PAGE, cursor: cursors.at(-1) };
    show(await ask("GET", "/sessions", { query, signal }));
  }, REFRESH_MS, (error) => tell(problem, error.message));

  const change = (changes) => {
    Object.assign(wanted, changes);
    cursors.length = 1;
    note(["sessions"], { ...wanted, live: wanted.live === "true" ? "" : wanted.live || "all",
      sort: wanted.sort === "newest" ? "" : wanted.sort });
    paint();
    poller.now();
  };
  const shown = el("div", { class: "segments", role: "group", "aria-label": "Which sessions" },
    SHOWN.map(([value, label]) => button(label, { class: null, data: { value },
      on: { click: () => change({ live: value, state: "" }) } })));
  const states = el("div", { class: "chips", role: "group", "aria-label": "By state" });
  const filter = el("input", { type: "search", placeholder: "Filter", value: wanted.q,
    "aria-label": "Filter by id, client, server, principal or dyno", "aria-keyshortcuts": "f",
    spellcheck: "false", autocomplete: "off" });
  const server = el("select", { "aria-label": "Server" }, option("", "all servers", wanted.server));
  const sort = el("select", { "aria-label": "Order" },
    SORTS.map(([value, label]) => option(value, label, wanted.sort)));
  const pauser = pauseButton(() => page.pause());
  let typing = null;
  filter.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: filter.value.trim() }), 200);
  });
  server.addEventListener("change", () => change({ server: server.value }));
  sort.addEventListener("change", () => change({ sort: sort.value }));
  on.addEventListener("click", () => {
    if (next) cursors.push(next);
    poller.now();
  });
  back.addEventListener("click", () => {
    if (cursors.length > 1) cursors.pop();
    poller.now();
  });

  const chips = new Map(STATES.map((state) => {
    const number = el("b");
    const node = el("button", { type: "button", class: "chip", hidden: true,
      data: { tone: stateTone({ state }) },
      on: { click: () => change({ state: wanted.state === state ? "" : state }) } },
    el("i", { "aria-hidden": "true" }), stateWord(state), number);
    return [state, { node, number }];
  }));
  replace(states, [...chips.values()].map((chip) => chip.node));

  function countStates(by) {
    for (const [state, chip] of chips) {
      const number = by[state] ?? 0;
      const over = state === "closed";
      chip.node.hidden = over || (!number && wanted.state !== state) || wanted.live === "false";
      say(chip.number, count(number));
    }
  }

  function paint() {
    for (const button of shown.children) {
      button.setAttribute("aria-pressed", String(button.dataset.value === wanted.live));
    }
    for (const [state, chip] of chips) {
      chip.node.setAttribute("aria-pressed", String(state === wanted.state));
    }
  }

  let named = "";

  async function nameServers(signal) {
    const servers = await ask("GET", "/servers", { signal });
    const names = servers.map(({ name }) => name).join("\n");
    if (names === named) return; // it may be open
    named = names;
    replace(server, option("", "all servers", wanted.server),
      servers.map(({ name }) => option(name, name, wanted.server)));
  }

  const naming = new Poller(nameServers, 30000, () => {});
  const pollers = [poller, glance.poller, naming];
  const page = {
    title: "Sessions",
    filter,
    node: el("div", { class: "page" }, el("h1", { class: "only-read" }, "Sessions"), glance.node,
      el("div", { class: "toolbar" }, shown, states, filter, server,
        sort, pauser),
      problem, list.node, pager),
    pause() {
      poller.pause(!poller.paused);
      pauser.setAttribute("aria-pressed", String(poller.paused));
      say(pauser, poller.paused ? "Go on" : "Pause");
    },
    back() {
      if (cursors.length > 1) back.click();
      else if (wanted.q || wanted.state || wanted.server) {
        filter.value = server.value = "";
        change({ q: "", state: "", server: "" });
      }
    },
    close() {
      clearTimeout(typing);
      for (const each of pollers) each.close();
    },
  };
  paint();
  for (const each of pollers) each.now();
  return page;
}
