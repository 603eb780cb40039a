// The operators' API. One boundary: whatever goes wrong becomes a Refused or an Away.

const BASE = "/admin/v1";
const ANSWER_MS = 15000;

// The gateway has answered, and said no.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// There was no answer.
export class Away extends Error {}

export const signedOut = new EventTarget();

export function ask(method, path, { query = {}, body, signal } = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined) search.set(name, value);
  }
  const tail = search.size ? `?${search}` : "";
  return send(method, `${BASE}${path}${tail}`, body, signal);
}

// Log in and out, and ask whether we are. The key is in this request and nowhere else.
export function door(method, what, body) {
  return send(method, `/console/${what}`, body);
}

export function address(...parts) {
  return parts.map((part) => `/${encodeURIComponent(part)}`).join("");
}

// Where a browser follows a story from, after a line it knows.
export function tailAddress(session, after) {
  return `${BASE}${address("sessions", session, "tail")}?after=${after}`;
}

async function send(method, url, body, signal) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-Rendezvous-Console"] = "1"; // no form of another page has it
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const limits = [AbortSignal.timeout(ANSWER_MS), ...(signal ? [signal] : [])];
  let response;
  let text;
  try {
    response = await fetch(url, {
      method, headers, cache: "no-store", credentials: "same-origin", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.any(limits),
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new Away(error.name === "TimeoutError" ? "no answer in time" : "cannot be reached");
  }
  return taken(response, text, url);
}

function taken(response, text, url) {
  if (response.ok) {
    const json = /^application\/json\b/.test(response.headers.get("Content-Type") ?? "");
    return json && text ? JSON.parse(text) : text;
  }
  if (response.status === 401 && url.startsWith(BASE)) signedOut.dispatchEvent(new Event("out"));
  if ([502, 504].includes(response.status) || (response.status === 503 && !text.startsWith("{"))) {
    throw new Away(`HTTP ${response.status}`);
  }
  throw new Refused(response.status, problem(text) || `HTTP ${response.status}`);
}

function problem(text) {
  try {
    const { error } = JSON.parse(text);
    return typeof error === "string" ? error : (error?.message ?? "");
  } catch {
    return "";
  }
}

// The lines of a story, each with its number as `n`.
export async function story(session, query, signal) {
  const text = await ask("GET", address("sessions", session, "story"), { query, signal });
  return String(text).split("\n").filter(Boolean).map((line) => JSON.parse(line));
}
