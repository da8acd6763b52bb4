// The audio worklet in front of the loudspeaker. It gets `{ samples }` at 24 kHz, or `{ gap: true }` before a pause. It posts
// its loudness and the held audio 20 times a second.

import { JitterBuffer } from "./jitter.js";
import { SAMPLE_RATE_HZ } from "./protocol.js";
import { Resampler } from "./resampler.js";

const REPORT_S = 0.05;

class Playback extends AudioWorkletProcessor {
  #resampler = new Resampler(SAMPLE_RATE_HZ, sampleRate);
  #buffer = new JitterBuffer(sampleRate);
  #energy = 0;
  #count = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      if (data.samples) this.#buffer.push(this.#resampler.process(data.samples));
      if (data.gap) this.#buffer.expectGap();
    };
  }

  process(_inputs, [[mono]]) {
    this.#buffer.pull(mono);
    for (const sample of mono) this.#energy += sample * sample;
    this.#count += mono.length;
    if (this.#count >= REPORT_S * sampleRate) this.#report();
    return true;
  }

  #report() {
    const { heldMs, underruns } = this.#buffer;
    this.port.postMessage({ rms: Math.sqrt(this.#energy / this.#count), heldMs, underruns });
    this.#energy = this.#count = 0;
  }
}

registerProcessor("playback", Playback);
