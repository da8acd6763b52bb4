// A jitter buffer: delays the agent's audio just enough to hide the network's jitter. playback.js reads 128 samples at a
// time. It needs no browser API.
//
//   arrives in frames of 80 ms   |####|        |####|   |####|    |####|
//   level                        waiting, playing \_ lowest level: this much could have been dropped
//
// Playing starts when the held audio plus the time since it arrived reach the target. With a target of 100 ms the second
// frame may come 20 ms late. An underrun raises the target. The target falls to the need of the last seconds' jitter, so a
// bad period is forgotten after some seconds. Audio that is always held above the target is dropped while the agent is
// silent. Without silence it is dropped where the voice repeats itself: a few periods at a time, cross-faded.

const FRAME_MS = 80;
const FADE_MS = 5;
const MARGIN_MS = 10; // in addition to a frame and the jitter
const FIRST_TARGET_MS = 100;
const MOST_TARGET_MS = 400;
const GROWTH_MS = 30; // at an underrun
const WINDOW_MS = 1000;
const MEMORY = 6; // windows whose jitter counts
const PIECE_MS = 20; // dropped at a time
const LOUD_MS = 1500; // without silence, until a voice is cut
const REST_MS = 80; // between two cuts of a voice
const RETRY_MS = 20;
const MOST_TRIES = 6; // after these the sound is noise, and can be cut anywhere
const SHORTEST_PERIOD_MS = 2.5; // 400 Hz
const ALIKE = 0.8; // least correlation of two places in a voice that may be joined
const HELD_MOST_MS = 800; // older audio is dropped at once
const QUIET = 0.003; // largest sample of silence, -50 dB

export class JitterBuffer {
  #rate; // samples in a ms
  #stride; // distance of compared samples: 12 in a ms
  #ring;
  #start = 0; // the oldest sample's place in #ring
  #held = 0; // samples
  #waiting = true;
  #waited = 0; // time in samples since the first held sample arrived
  #gain = 0;
  #gapExpected = false;
  #target = FIRST_TARGET_MS;
  #clock = 0; // samples pulled
  #received = 0; // samples pushed
  #lateness = []; // of the last windows, newest first: { least, most } of #clock - #received at arrivals
  #window = 0; // samples played in this window
  #lowest = Infinity; // fewest samples held in this window
  #spare = 0; // samples to drop
  #loud = 0; // samples played since the last silence
  #rest = 0; // samples until a voice may be cut
  #tries = 0; // failed searches for a place to cut, since the last success
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

  /** Adds samples from the server. */
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

  /** Announces a pause: the next gap is not an underrun. */
  expectGap() {
    this.#gapExpected = true;
  }

  /** Fills `output`; with silence if no audio is left. */
  pull(output) {
    this.#clock += output.length;
    if (this.heldMs > HELD_MOST_MS) this.#skip(this.#held - this.#samples(this.#target));
    if (this.#waiting && !this.#ready(output.length)) {
      output.fill(0);
      return;
    }
    const last = this.#held < 2 * output.length; // the next pull would have too few samples for a fade-out
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

  // Drops spare audio, and measures the spare audio once in each window.
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

  // The target in ms that would have been enough for all recent arrivals.
  #needed() {
    const least = Math.min(...this.#lateness.map((window) => window.least));
    const most = Math.max(...this.#lateness.map((window) => window.most));
    return FRAME_MS + MARGIN_MS + Math.max(0, most - least) / this.#rate;
  }

  #forget() {
    this.#lateness = [{ least: Infinity, most: -Infinity }];
  }

  // Both return the number of dropped samples.

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

  // The lag, at most a piece, at which the held audio is most like its beginning. Of several good lags it is the longest.
  // 0 if no lag is good enough.
  #period() {
    let [best, found] = [ALIKE, 0];
    const shortest = this.#samples(SHORTEST_PERIOD_MS);
    for (let lag = this.#samples(PIECE_MS); lag >= shortest; lag -= this.#stride) {
      const likeness = this.#likeness(lag);
      if (likeness > best + 0.01) [best, found] = [likeness, lag];
    }
    return found;
  }

  // Correlation of the first FADE_MS of the held audio with the FADE_MS that begin `lag` samples later.
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

  // Drops `count` samples with a cross-fade. False if it holds too few samples.
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
