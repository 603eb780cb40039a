// What the gateway's short words mean, for people. Unknown ones are shown as they are.

const ENDS = {
  client_delete: "The client ended it.",
  client_gone: "The client went away.",
  initialize_failed: "The server refused the client’s opening.",
  idle: "Nobody used it for its idle time-out.",
  lifetime: "It reached its longest life.",
  process_exit: "The server’s process ended by itself.",
  boot_timeout: "Its dyno was not ready in time.",
  boot_failed: "Its dyno could not be started.",
  no_room: "The platform had no room for its dyno.",
  link_lost: "Its dyno was not heard of again.",
  breach: "Its agent broke the link’s protocol.",
  drained: "The gateway was stopped.",
  evicted: "It had to make room for another session.",
  answered: "Its only request was answered.",
  operator: "An operator ended it.",
};

// Ends that nobody need look into.
const GOOD_ENDS = new Set([
  "client_delete", "client_gone", "idle", "lifetime", "drained", "evicted", "answered", "operator",
]);

const GOOD_OUTCOMES = new Set(["ok", "catalogue"]);

const LEVELS = {
  message: "debug", launched: "debug", parted: "warning", stdout_noise: "warning",
  dropped: "warning", contradicted: "warning", gap: "warning", breach: "error",
};

export const STATES = [
  "requested", "queued", "launching", "dialled_in", "ready", "idle", "parted", "closing", "closed",
];

export function stateWord(state) {
  return state.replace("_", " ");
}

// How a state is coloured: working, waiting, calm, troubled, over or failed.
export function stateTone(session) {
  switch (session.state) {
    case "ready": return "good";
    case "idle": return "calm";
    case "requested": case "queued": case "launching": case "dialled_in": return "busy";
    case "parted": case "closing": return "warn";
    default: return isGoodEnd(session.reason) ? "over" : "bad";
  }
}

export function isGoodEnd(reason) {
  return !reason || GOOD_ENDS.has(reason);
}

export function endSentence(reason) {
  return ENDS[reason] ?? "It has ended.";
}

// How an outcome is coloured; a cancelled call is nobody's fault.
export function outcomeTone(outcome) {
  if (GOOD_OUTCOMES.has(outcome)) return "good";
  if (outcome === "cancelled") return "over";
  return outcome === "running" ? "busy" : "bad";
}

export function levelOf(line) {
  if (line.event === "call") return outcomeTone(line.outcome) === "bad" ? "error" : "info";
  if (line.event === "closed" || line.event === "closing") {
    return isGoodEnd(line.reason) ? "info" : "error";
  }
  return line.level ?? LEVELS[line.event] ?? "info";
}

export const RANK = { debug: 0, info: 1, warning: 2, error: 3 };
