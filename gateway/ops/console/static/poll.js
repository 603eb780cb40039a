// Asks again and again: one request at a time, none while nobody looks, rarely while it fails.

import { Away, Refused } from "./api.js";

const LONGEST_MS = 30000;

// What the whole page knows of the gateway; hears "changed".
export const health = new EventTarget();
health.away = null; // nobody has asked yet
health.againAt = 0;

function heard(away, againAt) {
  const changed = health.away !== away || health.againAt !== againAt;
  health.away = away;
  health.againAt = againAt;
  if (changed) health.dispatchEvent(new Event("changed"));
}

export class Poller {
  // `work(signal)` asks and shows; `refused(error)` shows what the gateway said no to.
  constructor(work, everyMs, refused) {
    this.work = work;
    this.everyMs = everyMs;
    this.refused = refused;
    this.paused = false;
    this.failures = 0;
    this.timer = null;
    this.asking = null;
    this.again = false;
    this.closed = false;
    this.seen = () => {
      if (document.hidden) clearTimeout(this.timer);
      else this.now();
    };
    document.addEventListener("visibilitychange", this.seen);
  }

  // Ask now, though it is paused: somebody wants to see something else.
  async now() {
    clearTimeout(this.timer);
    if (this.closed) return;
    if (this.asking) {
      this.again = true;
      return;
    }
    this.asking = new AbortController();
    this.again = false;
    try {
      await this.work(this.asking.signal);
      this.failures = 0;
      heard("", 0);
    } catch (error) {
      this.failed(error);
    } finally {
      this.asking = null;
      if (this.again) this.now();
      else this.later();
    }
  }

  failed(error) {
    if (this.closed || error.name === "AbortError") return;
    this.failures += 1;
    if (error instanceof Away) heard(error.message, Date.now() + this.wait());
    else if (error instanceof Refused) {
      heard("", 0);
      this.refused(error);
    } else throw error;
  }

  wait() {
    if (!this.failures) return this.everyMs;
    const spread = 0.8 + 0.4 * Math.random(); // or all consoles come back in the same moment
    return Math.min(LONGEST_MS, Math.max(1000, this.everyMs) * 2 ** this.failures) * spread;
  }

  later() {
    clearTimeout(this.timer);
    if (this.closed || this.paused || document.hidden) return;
    const left = this.failures && health.againAt > Date.now() ? health.againAt - Date.now() : null;
    this.timer = setTimeout(() => this.now(), left ?? this.wait());
  }

  pause(paused) {
    this.paused = paused;
    if (paused) clearTimeout(this.timer);
    else this.now();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.asking?.abort();
    document.removeEventListener("visibilitychange", this.seen);
  }
}
