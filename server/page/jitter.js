// Holds the agent's audio back just long enough that the network's unevenness is not heard. playback.js reads it 128
// samples at a time; it needs no browser API.
//
//   arrives in frames of 80 ms   |####|        |####|   |####|    |####|
//   level                        waiting, playing \_ lowest level: what could have been spared
//
// Playing starts when what is held, and how long it has been held, make the target: a target of 100 ms leaves 20 ms
// until the second frame is missed. A miss raises the target; a quiet time lowers it a little. What is constantly held
// above it is dropped where the agent is silent, or else a little at a time, cross-faded.

const FRAME_MS = 80;
const FADE_MS = 5;
const LEAST_TARGET_MS = 90;
const FIRST_TARGET_MS = 100;
const MOST_TARGET_MS = 400;
const GROWTH_MS = 30; // at an underrun
const SHRINKAGE_MS = 5; // in a window, when the last underrun is long ago
const WINDOW_MS = 2000;
const CALM_MS = 10000; // without underruns, until the target shrinks
const PIECE_MS = 20; // what is dropped at a time
const HELD_MOST_MS = 800; // beyond this the past is given up at once
const QUIET = 0.003; // largest sample of silence, -50 dB

export class JitterBuffer {
  #rate; // samples in a ms
  #ring;
  #start = 0; // the oldest sample's place in #ring
  #held = 0; // samples
  #waiting = true;
  #waited = 0; // samples' time since there was something to play
  #gain = 0;
  #gapExpected = false;
  #target = FIRST_TARGET_MS;
  #window = 0; // samples played of it
  #lowest = Infinity; // fewest samples held in this window
  #spare = 0; // samples to drop when it is quiet
  #calm = 0; // samples played since the last underrun
  #underruns = 0;

  constructor(rateHz) {
    this.#rate = rateHz / 1000;
    this.#ring = new Float32Array(4 * rateHz);
  }

  get heldMs() {
    return this.#held / this.#rate;
  }

  get targetMs() {
    return this.#target;
  }

  get underruns() {
    return this.#underruns;
  }

  /** Adds what came from the server. */
  push(samples) {
    const surplus = this.#held + samples.length - this.#ring.length;
    if (surplus > 0) this.#drop(surplus);
    for (let i = 0; i < samples.length; i++) this.#ring[this.#index(this.#held + i)] = samples[i];
    this.#held += samples.length;
    this.#gapExpected = false;
  }

  /** No audio will come for a while, and none is missed: the next gap is no underrun. */
  expectGap() {
    this.#gapExpected = true;
  }

  /** Fills `output`, with silence where there is nothing to play. */
  pull(output) {
    if (this.heldMs > HELD_MOST_MS) this.#skip(this.#held - this.#samples(this.#target));
    if (this.#waiting && !this.#ready(output.length)) {
      output.fill(0);
      return;
    }
    const last = this.#held < 2 * output.length; // the next pull would have too little to fade out on
    this.#play(output, last ? -this.#gain / output.length : 1 / this.#samples(FADE_MS));
    if (last) this.#runDry();
    else this.#watch(output.length);
  }

  #ready(count) {
    if (this.#held < 2 * count) return false;
    this.#waited += count;
    if (this.#held + this.#waited < this.#samples(this.#target)) return false;
    this.#waiting = false;
    this.#startWindow();
    return true;
  }

  #play(output, step) {
    const count = Math.min(output.length, this.#held);
    for (let i = 0; i < count; i++) {
      this.#gain = Math.max(0, Math.min(1, this.#gain + step));
      output[i] = this.#ring[this.#index(i)] * this.#gain;
    }
    output.fill(0, count);
    this.#drop(count);
  }

  #runDry() {
    this.#waiting = true;
    this.#waited = this.#gain = this.#calm = 0;
    if (this.#gapExpected) return;
    this.#underruns++;
    this.#target = Math.min(MOST_TARGET_MS, this.#target + GROWTH_MS);
  }

  // Drops silence that is to spare, and every window looks at what was.
  #watch(count) {
    const piece = Math.min(this.#spare, this.#samples(PIECE_MS));
    if (piece > 0 && this.#isQuiet(piece + this.#samples(FADE_MS)) && this.#skip(piece)) this.#spare -= piece;
    this.#lowest = Math.min(this.#lowest, this.#held);
    this.#window += count;
    this.#calm += count;
    if (this.#window >= this.#samples(WINDOW_MS)) this.#closeWindow();
  }

  #closeWindow() {
    if (this.#calm > this.#samples(CALM_MS)) this.#target = Math.max(LEAST_TARGET_MS, this.#target - SHRINKAGE_MS);
    const spare = this.#lowest - this.#samples(this.#target - FRAME_MS);
    const wasLoud = this.#spare > 0; // a whole window without silence to drop
    if (wasLoud && spare > 0) this.#skip(Math.min(spare, Math.max(this.#samples(PIECE_MS), spare >> 2)));
    this.#startWindow(Math.max(0, spare));
  }

  #startWindow(spare = 0) {
    this.#spare = spare;
    this.#window = 0;
    this.#lowest = Infinity;
  }

  // Leaves `count` samples out, cross-faded; false if too few are held for that.
  #skip(count) {
    const fade = this.#samples(FADE_MS);
    if (this.#held < count + fade) return false;
    for (let i = 0; i < fade; i++) {
      const from = this.#ring[this.#index(i)];
      const to = this.#index(count + i);
      this.#ring[to] = from + ((this.#ring[to] - from) * (i + 1)) / (fade + 1);
    }
    this.#drop(count);
    this.#lowest -= count;
    return true;
  }

  #isQuiet(count) {
    if (this.#held < count) return false;
    for (let i = 0; i < count; i++) if (Math.abs(this.#ring[this.#index(i)]) > QUIET) return false;
    return true;
  }

  #drop(count) {
    this.#start = this.#index(count);
    this.#held -= count;
  }

  #index(offset) {
    return (this.#start + offset) % this.#ring.length;
  }

  #samples(ms) {
    return Math.round(ms * this.#rate);
  }
}
