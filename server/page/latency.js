// Measures how long the server takes to answer. It answers each whole frame with one frame, in order, except for the frames
// that it reports as dropped. No browser API in here.

import { FRAME_SAMPLES } from "./protocol.js";

const KEPT = 25; // answers, 2 s

export class ReplyTimer {
  #partial = 0; // sent samples of an incomplete frame
  #sentAt = []; // ms, of frames without an answer
  #dropped = 0; // frames
  #delays = []; // ms

  /** `count` samples went out at `nowMs`. */
  sent(count, nowMs) {
    this.#partial += count;
    for (; this.#partial >= FRAME_SAMPLES; this.#partial -= FRAME_SAMPLES) this.#sentAt.push(nowMs);
  }

  /** A frame came back at `nowMs`. */
  answered(nowMs) {
    if (this.#sentAt.length === 0) return;
    this.#delays.push(nowMs - this.#sentAt.shift());
    if (this.#delays.length > KEPT) this.#delays.shift();
  }

  /** The server has dropped `total` frames since the conversation began. */
  dropped(total) {
    this.#sentAt.splice(0, Math.max(0, total - this.#dropped));
    this.#dropped = total;
  }

  /** A new connection: earlier frames will get no answer. */
  restart() {
    this.#partial = 0;
    this.#sentAt = [];
  }

  /** Waiting time in ms of the oldest frame without an answer; 0 if all are answered. */
  waitingMs(nowMs) {
    return this.#sentAt.length ? nowMs - this.#sentAt[0] : 0;
  }

  /** The median of the last answers, or null before the first. */
  get medianMs() {
    const sorted = this.#delays.slice().sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }
}
