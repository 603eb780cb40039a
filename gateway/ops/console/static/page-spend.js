// What it costs, who waits, which dynos stand ready, which gateways serve.

import { address, ask } from "./api.js";
import { el, replace, said, say } from "./dom.js";
import { count, moment, money, span } from "./format.js";
import { Poller } from "./poll.js";
import {
  button, confirm, empty, gap, gauge, mono, problemBox, rate, row, sessionLink, table, tell, toast,
} from "./widgets.js";

const REFRESH_MS = 5000;

const SUMS = [["Name", "c-server"], ["Dyno time", "num"], ["Spent", "num"], ["Share", "c-share"]];
const POOL = [
  ["Server", "c-server"], ["State", "c-state"], ["Parked for", "num"], ["Dyno", "c-id"],
  ["Launch", "c-id"],
];
const QUEUE = [["Place", "c-when"], ["Session", "c-id"], ["Server", "c-server"], ["App", "c-who"]];
const RUNNING = [
  ["Session", "c-id"], ["Server", "c-server"], ["Principal", "c-who"], ["Size", "c-size"],
  ["Dyno time", "num"], ["Cost", "num"], ["Per hour", "num"], ["Ends at the latest", "num"],
];

function budget(name, { budget_usd: most, spent_usd: spent, committed_usd: committed }) {
  const words = most === null ? `${money(spent)} spent, no budget`
    : `${money(spent)} of ${money(most)}, up to ${money(committed)} more committed`;
  return el("li", {}, el("span", {}, name), el("span", { class: "num" }, words),
    most === null ? null : gauge(`Budget of ${name}`, spent, most));
}

function sums(part, by) {
  const entries = Object.entries(by ?? {})
    .sort(([, one], [, other]) => other.usd - one.usd || other.dyno_s - one.dyno_s);
  const all = entries.reduce((sum, [, each]) => sum + each.usd, 0);
  if (!entries.length) {
    empty(part.body, SUMS, "Nothing yet this month.");
    return;
  }
  replace(part.body, entries.map(([name, each]) => row(SUMS, [
    said(name || "–"), span(each.dyno_s), money(each.usd),
    gauge(`Share of ${name}`, each.usd, all),
  ])));
}

function fill(part, columns, entries, cells, sentence) {
  if (entries.length) replace(part.body, entries.map((entry) => row(columns, cells(entry))));
  else empty(part.body, columns, sentence);
}

function gatewayItem({ gateway, here }, refresh) {
  const drain = button("Drain", { class: "danger small" });
  const what = [
    "It takes nothing new, hands its sessions over to another gateway if it can, and leaves.",
    "Where nothing starts it again, it stays away.",
  ];
  drain.addEventListener("click", () => confirm(`Drain ${gateway}?`, what, "Drain", async () => {
    await ask("POST", address("gateways", gateway, "drain"));
    toast(`${gateway} leaves.`);
    refresh();
  }));
  return el("li", {}, mono(gateway),
    here ? el("span", { class: "quiet" }, "answers this page") : null, gap(), drain);
}

export function spendPage() {
  const month = el("h2", { id: "month-title" }, "This month");
  const total = el("p", { class: "figure num" });
  const budgets = el("ul", { class: "budgets" });
  const byServer = table("Spend by server", SUMS);
  const byPrincipal = table("Spend by principal", SUMS);
  const running = table("Dynos that run", RUNNING);
  const pool = table("Parked dynos", POOL);
  const queue = table("Sessions in line", QUEUE);
  const gateways = el("ul", { class: "gateways" });
  const problem = problemBox();
  let gatewaysBefore = "";

  const showLedger = (ledger) => {
    const now = ledger.months.find((each) => each.month === ledger.month) ?? { usd: 0, dyno_s: 0 };
    say(month, `${ledger.month}, until ${moment(ledger.month_ends)}`);
    say(total, `${money(now.usd)} for ${span(now.dyno_s)} of dynos`);
    replace(budgets, budget("all", ledger.budgets.overall),
      Object.entries(ledger.budgets.by_principal).map(([name, each]) => budget(said(name), each)));
    sums(byServer, now.by_server);
    sums(byPrincipal, now.by_principal);
    fill(running, RUNNING, ledger.running, (entry) => [
      sessionLink(entry.session), said(entry.server), said(entry.principal), entry.size,
      span(entry.dyno_s), money(entry.usd), rate(entry.usd_per_hour), moment(entry.latest_end),
    ], "No dyno runs.");
  };

  const poller = new Poller(async (signal) => {
    const [ledger, parked, line, processes] = await Promise.all(
      ["/ledger", "/pool", "/queue", "/gateways"].map((path) => ask("GET", path, { signal })));
    tell(problem, "");
    showLedger(ledger);
    fill(pool, POOL, parked, (dyno) => [
      said(dyno.server), dyno.state, span(dyno.parked_s), mono(dyno.dyno ?? "–"),
      mono(dyno.launch),
    ], "No dyno is parked.");
    fill(queue, QUEUE, line, (each) => [
      count(each.position), sessionLink(each.session), said(each.server), said(each.app ?? "–"),
    ], "Nobody waits.");
    const now = JSON.stringify(processes);
    if (now !== gatewaysBefore) {
      gatewaysBefore = now;
      replace(gateways, processes.map((each) => gatewayItem(each, () => poller.now())));
    }
  }, REFRESH_MS, (error) => tell(problem, error.message));
  poller.now();

  const part = (title, content) => el("section", { class: "panel" }, el("h2", {}, title), content);
  const halves = (...parts) => el("div", { class: "halves" }, parts);
  return {
    title: "Pool & spend",
    node: el("div", { class: "page spend" },
      el("h1", { class: "only-read" }, "Pool and spend"), problem,
      el("section", { class: "panel month", "aria-labelledby": "month-title" }, month, total,
        budgets),
      halves(part("By server", byServer.node), part("By principal", byPrincipal.node)),
      part("Dynos that run", running.node),
      halves(part("Parked dynos", pool.node), part("In line for a dyno", queue.node)),
      part("Gateways", gateways)),
    pause: () => poller.pause(!poller.paused),
    close: () => poller.close(),
  };
}
