// Packs and unpacks the messages of /api/chat (docs/protocol.md), and makes its queries. This file uses no browser API:
// conversation.js uses the WebSocket, words.js has the texts for close codes, and tests import this file alone.

export const SAMPLE_RATE_HZ = 24000;
export const FRAME_SAMPLES = 1920; // 80 ms; the server answers each frame
export const CHUNK_SAMPLES = 960; // 40 ms, in one message

const KINDS = ["handshake", "audio", "text", "control", "metadata", "error", "ping"];
const AUDIO = KINDS.indexOf("audio");
const METADATA = KINDS.indexOf("metadata");

/** Samples of -1 to 1 as an audio message: the kind, then 16 bits each, little-endian. */
export function packAudio(samples) {
  const message = new DataView(new ArrayBuffer(1 + 2 * samples.length));
  message.setUint8(0, AUDIO);
  samples.forEach((sample, i) => {
    const clipped = Math.max(-1, Math.min(1, sample || 0)); // NaN becomes silence
    message.setInt16(1 + 2 * i, Math.round(clipped * 32767), true);
  });
  return message.buffer;
}

/** An order to the conversation, such as { type: "hold" }, as a metadata message. */
export const packOrder = (order) => Uint8Array.of(METADATA, ...new TextEncoder().encode(JSON.stringify(order))).buffer;

/** A message's `kind` by name (or "unknown"), and its `samples`, `text` or `content`. */
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

/** The query of a new conversation, without empty settings. It asks the server to report the place in the queue. */
export const openingQuery = (settings) => queryOf({ early_metadata: "1", ...settings });

/** The query that resumes a conversation; `control`: "1" to send orders again. */
export const resumingQuery = (key, token, control) => queryOf({ resume: key, token, control });

function queryOf(settings) {
  const query = new URLSearchParams({ audio: "s16" });
  for (const [name, value] of Object.entries(settings)) if (value?.trim()) query.set(name, value.trim());
  return query.toString();
}

const NOT_READING = 4002;

/** Whether the conversation can resume: the connection was lost, or the server closed it because it was not read. */
export const isLoss = (code) => code === 1006 || code === NOT_READING;
