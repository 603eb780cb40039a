// The registry: what clients may open sessions with, the tools of each, how much each logs.

import { Away, Refused, address, ask } from "./api.js";
import { arrange, attribute, el, option, replace, said, say } from "./dom.js";
import { count } from "./format.js";
import { Poller } from "./poll.js";
import { to } from "./route.js";
import { badge, button, gap, problemBox, tell, toast } from "./widgets.js";

const REFRESH_MS = 10000;
const LEVELS = [
  ["", "logs as usual"], ["debug", "logs debug"], ["info", "logs info"],
  ["warning", "logs warnings"], ["error", "logs errors"],
];

class Server {
  constructor(name, shown) {
    this.name = name;
    this.before = "";
    this.facts = el("p", { class: "quiet" });
    this.about = el("p");
    this.level = el("select", { "aria-label": `Log level of ${name}` },
      LEVELS.map(([value, label]) => option(value, label, "")));
    this.tools = el("ul", { class: "tools" });
    this.summary = el("summary", {}, el("span", { class: "quiet" }, "tools"));
    this.more = el("details", {}, this.summary, this.tools);
    this.sessions = el("a", { href: to(["sessions"], { server: name }), class: "num",
      data: { row: "" } });
    this.status = badge("good", "");
    this.node = el("li", { class: "group server" },
      el("h3", {}, said(name), this.status, gap(), this.sessions),
      this.about, el("div", { class: "below" }, this.facts, this.level), this.more);
    this.more.addEventListener("toggle", () => this.more.open && this.open());
    this.level.addEventListener("change", () => this.setLevel());
    this.more.open = shown;
  }

  show(server) {
    const now = JSON.stringify(server);
    if (now === this.before) return;
    this.before = now;
    const gone = server.status !== "registered";
    this.status.dataset.tone = gone ? "warn" : "good";
    say(this.status.lastElementChild, server.status);
    say(this.about, server.description ?? "");
    const facts = [
      ["app", server.app], ["process type", server.process_type], ["size", server.size],
      ["release", server.release], ["warm", Array.isArray(server.warm) ? "by week" : server.warm],
    ];
    say(this.facts, facts.filter(([, value]) => value).map((pair) => pair.join(" ")).join(" · "));
    say(this.sessions, `${count(server.sessions)} live`);
    const tools = server.tools === null || server.tools === undefined ? "tools are not known yet"
      : `${count(server.tools)} ${server.tools === 1 ? "tool" : "tools"}`;
    say(this.summary.firstElementChild, tools);
    if (document.activeElement !== this.level) this.level.value = server.log_level ?? "";
    if (this.more.open) this.open();
  }

  async open() {
    await attempt(async () => {
      const { tools } = await ask("GET", address("servers", this.name));
      replace(this.tools, tools === null
        ? el("li", { class: "quiet" }, "Nobody has asked this server for its tools yet.")
        : tools.map((tool) => el("li", {}, said(tool.name, { class: "mono" }),
          el("p", { class: "quiet" }, said(tool.description)))));
    });
  }

  async setLevel() {
    await attempt(async () => {
      const level = this.level.value || null;
      await ask("PUT", address("servers", this.name, "log-level"), { body: { level } });
      toast(`${this.name} logs ${level ?? "as usual"} in a few seconds, at every gateway.`);
    });
  }
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    toast(error.message);
  }
}

export function serversPage(chosen) {
  const known = new Map();
  const list = el("ul", { class: "groups" });
  const problem = problemBox();
  const look = button("Look again");
  const poller = new Poller(async (signal) => {
    const servers = await ask("GET", "/servers", { signal });
    tell(problem, "");
    const shown = servers.map((server) => {
      const node = known.get(server.name) ?? new Server(server.name, server.name === chosen);
      known.set(server.name, node);
      node.show(server);
      return node.node;
    });
    arrange(list, shown.length ? shown : [el("li", { class: "none" }, "No server is registered.")]);
  }, REFRESH_MS, (error) => tell(problem, error.message));
  look.addEventListener("click", () => attempt(async () => {
    attribute(look, "disabled", true);
    try {
      await ask("POST", "/servers/refresh");
      poller.now();
    } finally {
      attribute(look, "disabled", false);
    }
  }));
  poller.now();
  return {
    title: "Servers",
    node: el("div", { class: "page" },
      el("div", { class: "toolbar" }, el("h1", {}, "Servers"), gap(), look), problem, list),
    pause: () => poller.pause(!poller.paused),
    close: () => poller.close(),
  };
}
