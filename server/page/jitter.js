// Holds the agent's audio back just long enough that the network's unevenness is not heard. playback.js reads it 128
// samples at a time; it needs no browser API.
//
//   arrives in frames of 80 ms   |####|        |####|   |####|    |####|
//   level                        waiting, playing \_ lowest level: what could have been spared
//
// Playing starts when what is held, and how long it has been held, make the target: a target of 100 ms leaves 20 ms
// until the second frame is missed. A miss raises the target. It falls to what the unevenness of the last seconds needs,
// so a bad spell is forgotten after them. What is constantly held above it is dropped where the agent is silent; without
// silence, where its voice repeats itself: a few periods at a time, cross-faded.

const FRAME_MS = 80;
const FADE_MS = 5;
const MARGIN_MS = 10; // beyond a frame and the unevenness
const FIRST_TARGET_MS = 100;
const MOST_TARGET_MS = 400;
const GROWTH_MS = 30; // at an underrun
const WINDOW_MS = 1000;
const MEMORY = 6; // windows whose unevenness counts
const PIECE_MS = 20; // what is dropped at a time
const LOUD_MS = 1500; // without silence, until a voice is cut
const REST_MS = 80; // between two cuts of a voice
const RETRY_MS = 20;
const MOST_TRIES = 6; // then it is noise, which can be cut anywhere
const SHORTEST_PERIOD_MS = 2.5; // 400 Hz
const ALIKE = 0.8; // correlation of two places that may be joined in a voice
const HELD_MOST_MS = 800; // beyond this the past is given up at once
const QUIET = 0.003; // largest sample of silence, -50 dB

export class JitterBuffer {
  #rate; // samples in a ms
  #stride; // samples between two that are compared, 12 of them a ms
  #ring;
  #start = 0; // the oldest sample's place in #ring
  #held = 0; // samples
  #waiting = true;
  #waited = 0; // samples' time since there was something to play
  #gain = 0;
  #gapExpected = false;
  #target = FIRST_TARGET_MS;
  #clock = 0; // samples pulled
  #received = 0; // samples pushed
  #lateness = []; // of the last windows, newest first: { least, most } of #clock - #received at arrivals
  #window = 0; // samples played of it
  #lowest = Infinity; // fewest samples held in this window
  #spare = 0; // samples to drop
  #loud = 0; // samples played since the last silence
  #rest = 0; // samples until a voice may be cut
  #tries = 0; // that found no place to cut, since one did
  #underruns = 0;

  constructor(rateHz) {
    this.#rate = rateHz / 1000;
    this.#stride = Math.max(1, Math.floor(this.#rate / 12));
    this.#ring = new Float32Array(4 * rateHz);
    this.#forget();
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
    if (this.#gapExpected) this.#forget();
    this.#gapExpected = false;
    this.#received += samples.length;
    const [now] = this.#lateness;
    now.least = Math.min(now.least, this.#clock - this.#received);
    now.most = Math.max(now.most, this.#clock - this.#received);
  }

  /** No audio will come for a while, and none is missed: the next gap is no underrun. */
  expectGap() {
    this.#gapExpected = true;
  }

  /** Fills `output`, with silence where there is nothing to play. */
  pull(output) {
    this.#clock += output.length;
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
    this.#waited = this.#gain = 0;
    if (this.#gapExpected) return;
    this.#underruns++;
    this.#target = Math.min(MOST_TARGET_MS, this.#target + GROWTH_MS);
  }

  // Drops what is to spare, and every window looks at what was.
  #watch(count) {
    this.#rest -= count;
    this.#loud = this.#isQuiet(count) ? 0 : this.#loud + count;
    if (this.#spare > 0) this.#spare -= this.#dropSilence() || this.#cutVoice();
    this.#lowest = Math.min(this.#lowest, this.#held);
    this.#window += count;
    if (this.#window >= this.#samples(WINDOW_MS)) this.#closeWindow();
  }

  #closeWindow() {
    this.#target = Math.min(this.#target, this.#needed());
    this.#lateness.unshift({ least: Infinity, most: -Infinity });
    this.#lateness.length = Math.min(this.#lateness.length, MEMORY);
    const spare = this.#lowest - this.#samples(this.#target - FRAME_MS);
    this.#startWindow(Math.max(0, spare));
  }

  #startWindow(spare = 0) {
    this.#spare = spare;
    this.#window = 0;
    this.#lowest = Infinity;
  }

  // The target in ms that would have been enough for all that arrived lately.
  #needed() {
    const least = Math.min(...this.#lateness.map((window) => window.least));
    const most = Math.max(...this.#lateness.map((window) => window.most));
    return FRAME_MS + MARGIN_MS + Math.max(0, most - least) / this.#rate;
  }

  #forget() {
    this.#lateness = [{ least: Infinity, most: -Infinity }];
  }

  // Both give how many samples they dropped.

  #dropSilence() {
    const piece = Math.min(this.#spare, this.#samples(PIECE_MS));
    return this.#isQuiet(piece + this.#samples(FADE_MS)) && this.#skip(piece) ? piece : 0;
  }

  #cutVoice() {
    const piece = this.#samples(PIECE_MS);
    if (this.#loud < this.#samples(LOUD_MS) || this.#rest > 0 || this.#spare < piece) return 0;
    if (this.#held < piece + this.#samples(FADE_MS)) return 0;
    const period = this.#tries < MOST_TRIES ? this.#period() : piece;
    this.#tries = period ? 0 : this.#tries + 1;
    this.#rest = this.#samples(period ? REST_MS : RETRY_MS);
    return period && this.#skip(period) ? period : 0;
  }

  // The distance, up to a piece, at which what is held is most like its beginning, the longest of some; 0 where none is
  // like it.
  #period() {
    let [best, found] = [ALIKE, 0];
    const shortest = this.#samples(SHORTEST_PERIOD_MS);
    for (let lag = this.#samples(PIECE_MS); lag >= shortest; lag -= this.#stride) {
      const likeness = this.#likeness(lag);
      if (likeness > best + 0.01) [best, found] = [likeness, lag];
    }
    return found;
  }

  // Correlation of the held audio's first FADE_MS with those `lag` samples later.
  #likeness(lag) {
    let [both, one, other] = [0, 1e-9, 1e-9];
    for (let i = 0, count = this.#samples(FADE_MS); i < count; i += this.#stride) {
      const [a, b] = [this.#ring[this.#index(i)], this.#ring[this.#index(lag + i)]];
      both += a * b;
      one += a * a;
      other += b * b;
    }
    return both / Math.sqrt(one * other);
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
