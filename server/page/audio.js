// Microphone and loudspeaker of one conversation, as chunks of samples at 24 kHz.

import { SAMPLE_RATE_HZ } from "./protocol.js";
import { microphoneProblem, NO_MICROPHONES, NO_SOUND, NOT_SECURE, OTHER_VERSION, partProblem, TOO_OLD, UNREACHABLE } from "./words.js";

const FADE_OUT_MS = 60;
const START_MS = 5000; // the longest start of a loudspeaker; wireless ones need some time
const PARTS = ["capture.js", "playback.js"];

/** The reason, to show, if this browser cannot hold a conversation; null if it can. */
export function audioProblem() {
  if (!isSecureContext) return NOT_SECURE;
  if (!navigator.mediaDevices?.getUserMedia) return NO_MICROPHONES;
  if (!window.AudioContext || !window.AudioWorkletNode) return TOO_OLD;
  return null;
}

/**
 * Opens both. Call it from a click, before any `await`. `on` has the callbacks `allowed()` when the microphone is open,
 * `chunk(samples)`, `playing({ rms, heldMs, underruns })`, and `ended()` when the microphone is gone. Throws an Error with
 * a message to show.
 */
export async function openAudio(on) {
  let context = newContext({ sampleRate: SAMPLE_RATE_HZ });
  let stream;
  try {
    stream = await openMicrophone();
    on.allowed();
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      context.close(); // Firefox accepts a microphone only in a context of the microphone's rate
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
    throw new Error(microphoneProblem(error.name));
  }
}

async function connect(context, stream, source, on) {
  try {
    await Promise.all(PARTS.map((name) => context.audioWorklet.addModule(urlOf(name))));
  } catch {
    throw new Error(await whyNotLoaded());
  }
  const mono = { channelCount: 1, channelCountMode: "explicit", outputChannelCount: [1] };
  const capture = new AudioWorkletNode(context, "capture", mono);
  const playback = new AudioWorkletNode(context, "playback", { ...mono, numberOfInputs: 0 });
  const volume = new GainNode(context);
  source.connect(capture).connect(context.destination); // the capture node is silent, but a node without an output may not run
  playback.connect(volume).connect(context.destination);
  capture.port.onmessage = ({ data }) => on.chunk(data);
  playback.port.onmessage = ({ data }) => on.playing(data);
  stream.getTracks().forEach((track) => track.addEventListener("ended", () => on.ended()));
  await started(context);
  return new Sound(context, stream, playback, volume, await hasLoudspeaker());
}

const urlOf = (name) => new URL(name, import.meta.url);

// A browser does not report why it could not load a worklet.
async function whyNotLoaded() {
  try {
    const answers = await Promise.all(PARTS.map((name) => fetch(urlOf(name), { cache: "no-store" })));
    const refused = answers.find((answer) => !answer.ok);
    return refused ? partProblem(refused.status) : OTHER_VERSION;
  } catch {
    return UNREACHABLE;
  }
}

// `resume` never resolves in Firefox without a loudspeaker, and in no browser without a user's gesture in time.
async function started(context) {
  await Promise.race([context.resume(), new Promise((done) => setTimeout(done, START_MS))]);
  if (context.state !== "running") throw new Error(NO_SOUND);
}

// Without a loudspeaker, Chromium plays silently. Other browsers do not list loudspeakers.
async function hasLoudspeaker() {
  if (!("setSinkId" in AudioContext.prototype)) return true;
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.some(({ kind }) => kind === "audiooutput");
}

class Sound {
  #context;
  #stream;
  #playback;
  #volume;

  constructor(context, stream, playback, volume, hasLoudspeaker) {
    this.hasLoudspeaker = hasLoudspeaker;
    this.#context = context;
    this.#stream = stream;
    this.#playback = playback;
    this.#volume = volume;
  }

  /** Plays samples at 24 kHz. The caller must not use the array after this. */
  play(samples) {
    this.#playback.port.postMessage({ samples }, [samples.buffer]);
  }

  /** Announces a pause in the audio. */
  pause() {
    this.#playback.port.postMessage({ gap: true });
  }

  /** Continues after the browser has stopped the sound (a phone call, no gesture yet). */
  wake() {
    if (this.#context.state !== "running") this.#context.resume();
  }

  /** Releases the microphone at once, and the loudspeaker after a fade-out, so that it does not click. */
  close() {
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#volume.gain.setTargetAtTime(0, this.#context.currentTime, FADE_OUT_MS / 4000);
    setTimeout(() => this.#context.close(), FADE_OUT_MS);
  }
}
