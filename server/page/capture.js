// The audio worklet behind the microphone: posts chunks of 40 ms at 24 kHz, at any rate of the context.

import { CHUNK_SAMPLES, SAMPLE_RATE_HZ } from "./protocol.js";
import { Resampler } from "./resampler.js";

class Capture extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, SAMPLE_RATE_HZ);
  #chunk = new Float32Array(CHUNK_SAMPLES);
  #filled = 0;

  process([[mono]]) {
    if (mono) for (const sample of this.#resampler.process(mono)) this.#add(sample);
    return true;
  }

  #add(sample) {
    this.#chunk[this.#filled++] = sample;
    if (this.#filled < CHUNK_SAMPLES) return;
    this.port.postMessage(this.#chunk, [this.#chunk.buffer]);
    this.#chunk = new Float32Array(CHUNK_SAMPLES);
    this.#filled = 0;
  }
}

registerProcessor("capture", Capture);
