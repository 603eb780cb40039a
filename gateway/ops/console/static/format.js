// Numbers and times for people. Seconds and dollars go in, short texts come out.

const COUNT = new Intl.NumberFormat("en");

export function count(value) {
  return COUNT.format(value ?? 0);
}

export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 60) return `${Math.floor(s)}s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${two((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

export function millis(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms && ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 10000) return `${COUNT.format(Math.round(ms))} ms`;
  return ms < 100000 ? `${(ms / 1000).toFixed(1)} s` : span(ms / 1000);
}

export function money(usd) {
  if (usd === null || usd === undefined) return "–";
  if (usd === 0) return "$0.00";
  if (usd < 0.0001) return "<$0.0001";
  return usd < 0.1 ? `$${usd.toFixed(4)}` : `$${usd.toFixed(2)}`;
}

export function bytes(value) {
  if (!value) return "0 B";
  if (value < 1024) return `${value} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let amount = value / 1024;
  let unit = 0;
  while (amount >= 1024 && unit < units.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return `${amount.toFixed(amount < 10 ? 1 : 0)} ${units[unit]}`;
}

function padded(number, digits = 2) {
  return String(number).padStart(digits, "0");
}

// Time of day, with milliseconds: for lines that follow each other closely.
export function clock(epoch) {
  const when = new Date(epoch * 1000);
  const hms = [when.getHours(), when.getMinutes(), when.getSeconds()].map((n) => padded(n));
  return `${hms.join(":")}.${padded(when.getMilliseconds(), 3)}`;
}

const SAME_DAY = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});
const OTHER_DAY = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
});

export function moment(epoch) {
  if (!epoch) return "–";
  const when = new Date(epoch * 1000);
  const today = when.toDateString() === new Date().toDateString();
  return (today ? SAME_DAY : OTHER_DAY).format(when);
}

export function now() {
  return Date.now() / 1000;
}
