// The frame around the pages: who is in, which page is shown, what the keys do.

import { Away, Refused, door, signedOut } from "./api.js";
import { replace, say } from "./dom.js";
import { listen, showHelp } from "./keys.js";
import { health } from "./poll.js";
import { failuresPage } from "./page-failures.js";
import { findPage } from "./page-find.js";
import { serversPage } from "./page-servers.js";
import { sessionPage } from "./page-session.js";
import { sessionsPage } from "./page-sessions.js";
import { spendPage } from "./page-spend.js";
import { here } from "./route.js";

const at = (id) => document.getElementById(id);

const PAGES = {
  sessions: (path, query) => (path[1] ? sessionPage(path[1], query) : sessionsPage(query)),
  failures: (_path, query) => failuresPage(query),
  servers: (path) => serversPage(path[1]),
  spend: () => spendPage(),
  find: (_path, query) => findPage(query),
};

let page = null;

function leave() {
  page?.close();
  page = null;
}

function show() {
  leave();
  const { path, query } = here();
  const name = path[0] in PAGES ? path[0] : "sessions";
  for (const link of at("nav").children) {
    const current = link.getAttribute("href") === `#/${name}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  page = PAGES[name](path, query);
  document.title = `${page.title} · Dyno gateway`;
  replace(at("main"), page.node);
  if (name !== "find") at("find-text").value = "";
  if (!document.activeElement || document.activeElement === document.body) {
    at("main").focus({ preventScroll: true });
  }
  scrollTo(0, 0);
}

function inside() {
  at("login").hidden = true;
  at("app").hidden = false;
  at("key").value = "";
  show();
}

function outside(problem = "") {
  leave();
  at("main").replaceChildren();
  for (const dialog of document.querySelectorAll("dialog")) dialog.remove();
  at("app").hidden = true;
  at("login").hidden = false;
  document.title = "Log in · Dyno gateway";
  say(at("login-problem"), problem);
  at("key").focus();
}

async function logIn(event) {
  event.preventDefault();
  const button = at("login-submit");
  button.disabled = true;
  say(at("login-problem"), "");
  try {
    await door("POST", "login", { key: at("key").value });
    inside();
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    const why = error instanceof Away ? `The gateway does not answer: ${error.message}.`
      : error.message;
    say(at("login-problem"), why);
    at("key").select();
  } finally {
    button.disabled = false;
  }
}

async function logOut() {
  try {
    await door("POST", "logout");
    outside();
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    say(at("away"), `Not logged out: ${error.message}.`);
    at("away").hidden = false;
  }
}

function pulse() {
  const seconds = Math.max(0, Math.ceil((health.againAt - Date.now()) / 1000));
  const state = health.away ? "away" : "live";
  at("pulse").dataset.is = state;
  say(at("pulse").firstElementChild, state);
  at("away").hidden = !health.away;
  if (health.away) {
    const next = seconds ? `trying again in ${seconds} s` : "trying again";
    say(at("away"), `The gateway is away (${health.away}); what you see is old. Now ${next}.`);
  }
}

function find(event) {
  event.preventDefault();
  const text = at("find-text").value.trim();
  if (text) location.hash = `#/find?${new URLSearchParams({ q: text })}`;
}

async function start() {
  at("login-form").addEventListener("submit", logIn);
  at("logout").addEventListener("click", logOut);
  at("find").addEventListener("submit", find);
  at("help-open").addEventListener("click", showHelp);
  at("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the fragment is the page's name
    (at("app").hidden ? at("key") : at("main")).focus();
  });
  signedOut.addEventListener("out", () => {
    if (!at("app").hidden) outside("You are logged out. Log in again to go on.");
  });
  addEventListener("hashchange", () => {
    if (!at("app").hidden) show();
  });
  health.addEventListener("changed", pulse);
  setInterval(() => {
    if (health.away) pulse();
  }, 1000);
  listen(() => page);
  try {
    const { authenticated } = await door("GET", "me");
    if (authenticated) inside();
    else outside();
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    outside(`The gateway does not answer: ${error.message}.`);
  }
}

start();
