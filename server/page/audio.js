// Microphone and loudspeaker of one conversation, as chunks of samples at 24 kHz.

import { SAMPLE_RATE_HZ } from "./protocol.js";

const FADE_OUT_MS = 60;

/** Why this browser cannot hold a conversation, to show; null if it can. */
export function audioProblem() {
  if (!isSecureContext) {
    return "A browser gives the microphone only to a page that came over https, or from this very computer (localhost).";
  }
  if (!navigator.mediaDevices?.getUserMedia) return "This browser cannot use a microphone.";
  if (!window.AudioContext || !window.AudioWorkletNode) return "This browser is too old: it has no AudioWorklet.";
  return null;
}

/**
 * Opens both; call it from a click, before anything is awaited. `on` has `chunk(samples)`, `playing({ rms, heldMs,
 * underruns })` and `ended()`, the microphone being gone. Throws an Error with a message to show.
 */
export async function openAudio(on) {
  let context = newContext({ sampleRate: SAMPLE_RATE_HZ });
  let stream;
  try {
    stream = await openMicrophone();
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      context.close(); // Firefox: a microphone only in a context of its own rate
      context = newContext();
      source = context.createMediaStreamSource(stream);
    }
    return await connect(context, stream, source, on);
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    context.close();
    throw error;
  }
}

function newContext(options) {
  try {
    return new AudioContext({ latencyHint: "interactive", ...options });
  } catch {
    return new AudioContext();
  }
}

async function openMicrophone() {
  const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(microphoneProblem(error));
  }
}

function microphoneProblem({ name, message }) {
  if (name === "NotAllowedError") return "The microphone was not allowed. Allow it for this page, then press Talk again.";
  if (name === "NotFoundError") return "There is no microphone. Connect one, then press Talk again.";
  if (name === "NotReadableError") return "The microphone is in use by another program, or switched off.";
  return `The microphone could not be opened: ${message || name}`;
}

async function connect(context, stream, source, on) {
  try {
    await Promise.all(["capture.js", "playback.js"].map((name) => context.audioWorklet.addModule(urlOf(name))));
  } catch {
    throw new Error("A part of this page could not be loaded. Reload it.");
  }
  const mono = { channelCount: 1, channelCountMode: "explicit", outputChannelCount: [1] };
  const capture = new AudioWorkletNode(context, "capture", mono);
  const playback = new AudioWorkletNode(context, "playback", { ...mono, numberOfInputs: 0 });
  const volume = new GainNode(context);
  source.connect(capture).connect(context.destination); // it is silent, but what leads nowhere may not run
  playback.connect(volume).connect(context.destination);
  capture.port.onmessage = ({ data }) => on.chunk(data);
  playback.port.onmessage = ({ data }) => on.playing(data);
  stream.getTracks().forEach((track) => track.addEventListener("ended", () => on.ended()));
  await resumed(context);
  return new Sound(context, stream, playback, volume);
}

const urlOf = (name) => new URL(name, import.meta.url);

// Without a user's gesture in time this never resolves: page.js resumes at the next one.
const resumed = (context) => Promise.race([context.resume(), new Promise((done) => setTimeout(done, 1000))]);

class Sound {
  #context;
  #stream;
  #playback;
  #volume;

  constructor(context, stream, playback, volume) {
    this.#context = context;
    this.#stream = stream;
    this.#playback = playback;
    this.#volume = volume;
  }

  /** Plays samples at 24 kHz; they are handed over. */
  play(samples) {
    this.#playback.port.postMessage({ samples }, [samples.buffer]);
  }

  /** No audio is to be expected for a while. */
  pause() {
    this.#playback.port.postMessage({ gap: true });
  }

  /** Goes on after the browser stopped the sound (a phone call, no gesture yet). */
  wake() {
    if (this.#context.state !== "running") this.#context.resume();
  }

  /** Gives the microphone back at once, and the loudspeaker without a click. */
  close() {
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#volume.gain.setTargetAtTime(0, this.#context.currentTime, FADE_OUT_MS / 4000);
    setTimeout(() => this.#context.close(), FADE_OUT_MS);
  }
}
