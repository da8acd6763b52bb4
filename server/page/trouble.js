// Detects problems of a conversation; page.js asks twice a second. This file uses no browser API.

const SLOW_MS = 1000; // an answer that takes longer is slow
const GAPS = 3; // so many gaps in the agent's audio ...
const GAPS_MS = 5000; // ... within this time are a slow connection
const STOPPED_MS = 2000; // without a request for audio from the loudspeaker
const SILENT_MS = 5000; // of exact zeros from the microphone
const SHOWN_MS = 2500; // a message stays at least this long

export class Trouble {
  #playedAt; // ms
  #soundAt; // ms, the last time the microphone gave anything but zeros
  #gaps = []; // ms
  #underruns = 0;
  #slowUntil = 0; // ms

  constructor(nowMs) {
    this.#playedAt = this.#soundAt = nowMs;
  }

  /** The loudspeaker asked for audio; `underruns` counts the gaps until now. */
  played(underruns, nowMs) {
    this.#playedAt = nowMs;
    for (; this.#underruns < underruns; this.#underruns++) this.#gaps.push(nowMs);
  }

  /** The microphone gave samples. */
  heard(samples, nowMs) {
    if (samples.some((sample) => sample !== 0)) this.#soundAt = nowMs;
  }

  /** A new connection: earlier silence and gaps do not count. */
  restart(nowMs) {
    this.#soundAt = nowMs;
    this.#gaps = [];
    this.#slowUntil = 0;
  }

  /** "stopped", "slow", "silent" or null; `waitingMs`: how long the oldest frame has waited for an answer. */
  look(waitingMs, nowMs) {
    this.#gaps = this.#gaps.filter((at) => nowMs - at < GAPS_MS);
    if (waitingMs > SLOW_MS || this.#gaps.length >= GAPS) this.#slowUntil = nowMs + SHOWN_MS;
    if (nowMs - this.#playedAt > STOPPED_MS) return "stopped";
    if (nowMs < this.#slowUntil) return "slow";
    return nowMs - this.#soundAt > SILENT_MS ? "silent" : null;
  }
}
