// The page's texts about a conversation: its state, a problem, and what to do. This file uses no browser API.

/** The status line in each state; `detail` comes from `Conversation` with the state. */
export const STATES = {
  ready: () => "",
  microphone: () => "Waiting for the microphone. Allow it if your browser asks.",
  sound: () => "Starting the sound…",
  connecting: () => "Connecting…",
  queued: (place) => (place === 1 ? "All slots are taken. You are next." : `All slots are taken. You are number ${place} in the queue.`),
  preparing: () => "Getting ready…",
  talking: () => "Talking. Say something.",
  lost: () => "The connection is lost. Trying to reconnect…",
  ended: (reason) => reason || "The conversation is over.",
};

/** The status line while a conversation has a problem: see trouble.js. */
export const TROUBLES = {
  stopped: "The sound has stopped. Tap or click this page. If you still hear nothing, check your headphones or loudspeaker.",
  slow: "The connection is slow. If it stays slow, move closer to your Wi-Fi router or try another network.",
  silent: "No sound comes from your microphone. Check that it is on and not muted.",
  deaf: "No loudspeaker was found. Connect headphones or a loudspeaker to hear the agent.",
};

/** What came of an order to the agent. */
export const ANSWERS = {
  queued: () => "The agent says it now.",
  speaking: () => "The agent is saying it.",
  done: () => "The agent has said it.",
  cut: (words) => `The agent stopped after ${words} ${words === 1 ? "word" : "words"}.`,
  held: () => "The agent stays silent until you press Hold again.",
  refused: (reason) => `The agent cannot do this. ${clip(reason)}`,
};

const AGAIN = "then press Talk again";
const TELL = "tell the person who runs this server";

export const NOT_SECURE =
  "Browsers allow the microphone only on secure pages. Open this page with https:// instead of http://, or on the computer " +
  "that runs the server.";
export const NO_MICROPHONES = "This browser cannot use a microphone. Open this page in a current Firefox, Chrome, Edge or Safari.";
export const TOO_OLD = "This browser is too old for this page. Update it, or use a current Firefox, Chrome, Edge or Safari.";
export const NO_SOUND = `The sound did not start. Connect headphones or a loudspeaker, ${AGAIN}.`;
export const MICROPHONE_GONE = `The microphone was disconnected or switched off. Connect it, ${AGAIN}.`;
export const UNREACHABLE = "The server does not answer. Check your internet connection. If it works, the server is down: try again in a minute.";
export const NOT_LOADED = "The server does not answer. Check your internet connection. If it works, the server is down: reload this page in a minute.";
export const OFFLINE = `You are offline. Connect to a network, ${AGAIN}.`;
export const LOST = `The connection was lost. Check your internet connection, ${AGAIN}.`;
export const BLOCKED = `The server answers, but a conversation cannot connect. Try another network. If that does not help, ${TELL}.`;
export const OTHER_VERSION = "The server now has another version of this page. Reload the page.";
const REFUSED_TOKEN = "The access token is missing or not valid. Enter it in the field “Access token”, then press Talk.";
const OVER = "The conversation is over: the server was restarted, or you were away for too long. Press Talk to begin a new one.";
const TOO_LONG = `The persona is too long for this server. Shorten it, ${AGAIN}.`;
const DISAGREE = "This page and the server do not understand each other. Reload the page.";

const MICROPHONE = {
  NotAllowedError: `The microphone is not allowed. Allow it for this page in your browser, ${AGAIN}.`,
  SecurityError: `The microphone is not allowed. Allow it for this page in your browser, ${AGAIN}.`,
  NotFoundError: `No microphone was found. Connect one, ${AGAIN}.`,
  NotReadableError: `The microphone cannot be used. Close other programs that use it, check that it is on, ${AGAIN}.`,
};

/** Why the microphone did not open, by the name of the browser's error. */
export const microphoneProblem = (name) =>
  MICROPHONE[name] ?? `The microphone could not be opened. Check that it is connected and allowed, ${AGAIN}.`;

/** Why the server did not send a file of the page, by HTTP status. */
export const partProblem = (status) =>
  status >= 500
    ? `The server does not work right now (${status}). Reload this page in a minute.`
    : `A part of this page is missing on the server (${status}). Reload the page. If that does not help, ${TELL}.`;

const ENDINGS = {
  1000: () => "The server ended the conversation. Press Talk to begin a new one.",
  1001: () => "The server is shutting down. Try again in a few minutes.",
  1003: () => DISAGREE,
  1007: () => DISAGREE,
  1008: (said) => `${said || "You said nothing for too long, or the conversation reached its maximum duration."} Press Talk to begin a new one.`,
  1009: () => DISAGREE,
  1011: () => `The server has a fault. Press Talk to begin again. If it happens again, ${TELL}.`,
  1013: () => "No slot became free in time. Try again in a few minutes.",
  4001: () => "The conversation continues in another window.",
};

/** The text for a WebSocket's close code; `said` is the error message that the server sent before it. */
export const endingOf = (code, said = "") =>
  ENDINGS[code]?.(clip(said)) ?? `The connection was closed (code ${code}). Press Talk to begin again.`;

/** Why the server refused a conversation: by HTTP status, and the server's sentence, "" if the answer had none. */
export function refusalOf(status, sentence, resuming) {
  const said = clip(sentence);
  if (status === 401) return REFUSED_TOKEN;
  if (status === 403) return `The server does not accept this page at this address. Please ${TELL}${said && `: ${said}`}`;
  if (status === 404 && resuming) return OVER;
  if (status === 404) return `This address has no server for conversations. Check the address, or ${TELL}.`;
  if ([413, 414, 431].includes(status)) return TOO_LONG;
  if (said && status === 503) return said;
  if (said) return `The server did not accept this: ${said}`;
  if (status === 400) return TOO_LONG; // from an HTTP parser
  if (status >= 500) return `The server does not work right now (${status}). Try again in a minute.`;
  return `The server refused the connection (${status}). Reload the page. If that does not help, ${TELL}.`;
}

const MOST = 300; // characters of a text from outside

/** A text from outside on one line, with at most MOST characters. */
export function clip(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length <= MOST ? line : `${line.slice(0, MOST - 1)}…`;
}
