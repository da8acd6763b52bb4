// What a conversation suffers from, looked at twice a second. No browser API in here.

const SLOW_MS = 1000; // that an answer takes
const GAPS = 3; // in the agent's audio,
const GAPS_MS = 5000; // within this time
const STOPPED_MS = 2000; // that the loudspeaker has not asked for audio
const SILENT_MS = 5000; // of exact zeros from the microphone
const SHOWN_MS = 2500; // a word stays to be read

export class Trouble {
  #playedAt; // ms
  #soundAt; // ms, the last time the microphone gave anything but zeros
  #gaps = []; // ms
  #underruns = 0;
  #slowUntil = 0; // ms

  constructor(nowMs) {
    this.#playedAt = this.#soundAt = nowMs;
  }

  /** The loudspeaker asked for audio; there were so many gaps until now. */
  played(underruns, nowMs) {
    this.#playedAt = nowMs;
    for (; this.#underruns < underruns; this.#underruns++) this.#gaps.push(nowMs);
  }

  /** The microphone gave samples. */
  heard(samples, nowMs) {
    if (samples.some((sample) => sample !== 0)) this.#soundAt = nowMs;
  }

  /** A new connection: what was before it does not count. */
  restart(nowMs) {
    this.#soundAt = nowMs;
    this.#gaps = [];
    this.#slowUntil = 0;
  }

  /** "stopped", "slow", "silent" or null; `waitingMs` is for how long the oldest frame has had no answer. */
  look(waitingMs, nowMs) {
    this.#gaps = this.#gaps.filter((at) => nowMs - at < GAPS_MS);
    if (waitingMs > SLOW_MS || this.#gaps.length >= GAPS) this.#slowUntil = nowMs + SHOWN_MS;
    if (nowMs - this.#playedAt > STOPPED_MS) return "stopped";
    if (nowMs < this.#slowUntil) return "slow";
    return nowMs - this.#soundAt > SILENT_MS ? "silent" : null;
  }
}
