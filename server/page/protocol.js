// The messages of /api/chat as bytes and as what they mean, and its address; docs/server.md describes them. No browser API
// in here: conversation.js does the talking, words.js says what a close code means, and tests import this file alone.

export const SAMPLE_RATE_HZ = 24000;
export const FRAME_SAMPLES = 1920; // 80 ms, what the server answers one by one
export const CHUNK_SAMPLES = 960; // 40 ms, what we send at a time

const KINDS = ["handshake", "audio", "text", "control", "metadata", "error", "ping"];
const AUDIO = KINDS.indexOf("audio");

/** Samples of -1 to 1 as an audio message: the kind, then 16 bits each, little-endian. */
export function packAudio(samples) {
  const message = new DataView(new ArrayBuffer(1 + 2 * samples.length));
  message.setUint8(0, AUDIO);
  samples.forEach((sample, i) => {
    const clipped = Math.max(-1, Math.min(1, sample || 0)); // not a number is silence
    message.setInt16(1 + 2 * i, Math.round(clipped * 32767), true);
  });
  return message.buffer;
}

/** A message's `kind` by name ("unknown" for one we do not know), and its `samples`, `text` or `content`. */
export function unpack(buffer) {
  const view = new DataView(buffer);
  const kind = (view.byteLength && KINDS[view.getUint8(0)]) || "unknown";
  if (kind === "audio") return { kind, samples: samplesOf(view) };
  if (kind === "text" || kind === "error") return { kind, text: textOf(buffer) };
  if (kind === "metadata") return { kind, content: contentOf(buffer) };
  return { kind };
}

function samplesOf(view) {
  const samples = new Float32Array((view.byteLength - 1) >> 1);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(1 + 2 * i, true) / 32768;
  return samples;
}

const textOf = (buffer) => new TextDecoder().decode(new Uint8Array(buffer, 1));

function contentOf(buffer) {
  try {
    return Object(JSON.parse(textOf(buffer)));
  } catch {
    return {};
  }
}

/** The query of a new conversation; settings that are empty are left to the server. It asks for its place in the queue. */
export const openingQuery = (settings) => queryOf({ early_metadata: "1", ...settings });

/** The query that goes on with a conversation. */
export const resumingQuery = (key, token) => queryOf({ resume: key, token });

function queryOf(settings) {
  const query = new URLSearchParams({ audio: "s16" });
  for (const [name, value] of Object.entries(settings)) if (value?.trim()) query.set(name, value.trim());
  return query.toString();
}

const NOT_READING = 4002;

/** Whether the connection was lost, or given up by a server that could not get through: then the conversation can go on. */
export const isLoss = (code) => code === 1006 || code === NOT_READING;
