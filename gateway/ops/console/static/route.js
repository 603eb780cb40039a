// Pages are named by the fragment: `#/sessions/s-1?call=2`. It never holds anything secret.

import { address } from "./api.js";

export function here() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { path: path.split("/").map(plain), query: new URLSearchParams(search) };
}

function plain(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

export function to(parts, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value) search.set(name, value);
  return `#${address(...parts)}${search.size ? `?${search}` : ""}`;
}

export function toSession(session, call) {
  return to(["sessions", session], { call });
}

// Keep what is chosen on this page in its name, without going anywhere.
export function note(parts, query) {
  history.replaceState(null, "", to(parts, query));
}
