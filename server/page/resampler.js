// Changes the rate of a stream of samples, piece by piece. Both audio worklets use it; it needs no browser API.

const CROSSINGS = 32; // zero crossings of the sinc on each side
const KAISER_BETA = 8; // stops at -80 dB
// For -80 dB and this number of crossings, the Kaiser window's transition is 7.9 % of the lower rate wide (Kaiser 1974: the
// number of taps is (A - 8) / (2.285 x width)). The sinc's cut-off lies that far below half the lower rate: no aliasing.
const CUTOFF = 1 - 0.079;

/** A polyphase windowed sinc for two whole rates. */
export class Resampler {
  #up; // output rate over input rate is #up / #down, without common factors
  #down;
  #half; // input samples on each side of a tap's centre
  #phases; // #up filters of 2 x #half taps
  #history; // input samples that are still needed
  #filled; // their number
  #at = 0; // the next output's place in #history, whole samples
  #phase = 0; // the fraction of its place, in #up-ths of a sample
  #output = new Float32Array(0);

  constructor(fromHz, toHz) {
    const divisor = commonDivisor(fromHz, toHz);
    this.#up = toHz / divisor;
    this.#down = fromHz / divisor;
    const scale = CUTOFF * Math.min(1, toHz / fromHz);
    this.#half = Math.ceil(CROSSINGS / Math.min(1, toHz / fromHz));
    this.#phases = Array.from({ length: this.#up }, (_, phase) => filter(phase / this.#up, this.#half, scale));
    this.#filled = this.#half - 1; // silence before the first sample
    this.#history = new Float32Array(2 * this.#half);
  }

  /** The output samples that `input` completes. The next call overwrites them. */
  process(input) {
    if (this.#up === this.#down) return input;
    this.#append(input);
    let count = 0;
    while (this.#at + 2 * this.#half <= this.#filled) {
      this.#output[count++] = this.#sample();
      this.#phase += this.#down;
      this.#at += Math.floor(this.#phase / this.#up);
      this.#phase %= this.#up;
    }
    const done = Math.min(this.#at, this.#filled);
    this.#history.copyWithin(0, done, this.#filled);
    this.#filled -= done;
    this.#at -= done;
    return this.#output.subarray(0, count);
  }

  #append(input) {
    const needed = this.#filled + input.length;
    if (needed > this.#history.length) {
      const larger = new Float32Array(2 * needed);
      larger.set(this.#history);
      this.#history = larger;
    }
    this.#history.set(input, this.#filled);
    this.#filled = needed;
    const most = Math.ceil((needed * this.#up) / this.#down) + 1;
    if (most > this.#output.length) this.#output = new Float32Array(2 * most);
  }

  #sample() {
    const taps = this.#phases[this.#phase];
    let sum = 0;
    for (let i = 0; i < taps.length; i++) sum += taps[i] * this.#history[this.#at + i];
    return sum;
  }
}

// Taps for an output that lies `fraction` of a sample after the sample at index half - 1. Their sum is 1.
function filter(fraction, half, scale) {
  const taps = Float64Array.from({ length: 2 * half }, (_, i) => {
    const distance = i - (half - 1) - fraction;
    return sinc(scale * distance) * kaiser(distance / half);
  });
  const sum = taps.reduce((total, tap) => total + tap, 0);
  return taps.map((tap) => tap / sum);
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

const kaiser = (x) => (Math.abs(x) >= 1 ? 0 : bessel(KAISER_BETA * Math.sqrt(1 - x * x)) / bessel(KAISER_BETA));

// The modified Bessel function of the first kind, order 0, by its series.
function bessel(x) {
  let sum = 1;
  for (let term = 1, k = 1; term > 1e-12 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

const commonDivisor = (a, b) => (b === 0 ? a : commonDivisor(b, a % b));
