// Detects trouble in a conversation, twice a second. No browser API in here.

const SLOW_MS = 1000; // an answer that takes longer is slow
const GAPS = 3; // this number of gaps in the agent's audio
const GAPS_MS = 5000; // within this time is trouble
const STOPPED_MS = 2000; // the loudspeaker has not asked for audio for this long
const SILENT_MS = 5000; // the microphone has given exact zeros for this long
const SHOWN_MS = 2500; // shortest time that a message is shown

export class Trouble {
  #playedAt; // ms
  #soundAt; // ms, the last time the microphone gave a sample other than zero
  #gaps = []; // ms
  #underruns = 0;
  #slowUntil = 0; // ms

  constructor(nowMs) {
    this.#playedAt = this.#soundAt = nowMs;
  }

  /** The loudspeaker asked for audio. `underruns`: the number of gaps until now. */
  played(underruns, nowMs) {
    this.#playedAt = nowMs;
    for (; this.#underruns < underruns; this.#underruns++) this.#gaps.push(nowMs);
  }

  /** The microphone gave samples. */
  heard(samples, nowMs) {
    if (samples.some((sample) => sample !== 0)) this.#soundAt = nowMs;
  }

  /** A new connection: earlier events do not count. */
  restart(nowMs) {
    this.#soundAt = nowMs;
    this.#gaps = [];
    this.#slowUntil = 0;
  }

  /** "stopped", "slow", "silent" or null. `waitingMs`: waiting time of the oldest frame without an answer. */
  look(waitingMs, nowMs) {
    this.#gaps = this.#gaps.filter((at) => nowMs - at < GAPS_MS);
    if (waitingMs > SLOW_MS || this.#gaps.length >= GAPS) this.#slowUntil = nowMs + SHOWN_MS;
    if (nowMs - this.#playedAt > STOPPED_MS) return "stopped";
    if (nowMs < this.#slowUntil) return "slow";
    return nowMs - this.#soundAt > SILENT_MS ? "silent" : null;
  }
}
