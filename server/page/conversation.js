// One conversation over a WebSocket. If the connection is lost, another WebSocket resumes it.
//
//   connecting -> (queued) -> preparing -> talking <-> lost
//        \____________________________________\__________\-> ended

import { isLoss, openingQuery, packAudio, packOrder, resumingQuery, unpack } from "./protocol.js";
import { BLOCKED, endingOf, LOST, OFFLINE, refusalOf, UNREACHABLE } from "./words.js";

const OPEN_TIMEOUT_MS = 10000;
const SILENCE_MS = 8000; // the server sends something every 2 s
const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 4000;
const UNSENT_MOST = 48000; // bytes, a second of audio; more would only arrive late

export class Conversation {
  #on;
  #token;
  #control;
  #socket = null;
  #abandoned = []; // open sockets that went silent; closing them would end the conversation on the server
  #state = "";
  #session = null; // the server's metadata
  #heardAt = 0; // ms, time of the last message
  #openedAt = 0; // ms, time of the last attempt to connect
  #lostAt = 0;
  #attempts = 0;
  #retry = 0; // timer
  #watch = 0; // timer
  #serverError = "";

  /**
   * `on` has `state(name, detail)`, `audio(samples)`, `text(piece)`, `session(facts)`, `dropped(frames)`,
   * `answered(content)` for what came of orders, and `tokenRefused()`. `detail` is a position for `queued`, and a reason to show for `ended`: "" if the user stopped.
   */
  constructor(settings, on) {
    this.#on = on;
    this.#token = settings.token;
    this.#control = settings.control;
    this.#enter("connecting");
    this.#open(openingQuery(settings));
    this.#watch = setInterval(() => this.#look(), 1000);
  }

  /** Sends a chunk of the microphone. Returns false before the handshake and while the network is stalled. */
  send(samples) {
    if (this.#state !== "talking" || this.#socket.bufferedAmount > UNSENT_MOST) return false;
    this.#socket.send(packAudio(samples));
    return true;
  }

  /** Orders the agent to do something (docs/protocol.md). Returns false unless the conversation can take it now. */
  order(content) {
    if (this.#state !== "talking" || this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(packOrder(content));
    return true;
  }

  /** The user ends the conversation. */
  stop() {
    this.#end("");
  }

  /** The network is back: reconnect now. */
  hurry() {
    if (this.#state === "lost" && this.#retry) this.#resume();
  }

  #enter(state, detail) {
    if (this.#state === "ended") return;
    this.#state = state;
    this.#on.state(state, detail);
  }

  #open(query) {
    const url = new URL(`api/chat?${query}`, document.baseURI);
    const socket = new WebSocket(url.href.replace(/^http/, "ws"));
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#serverError = "";
    this.#openedAt = this.#heardAt = performance.now();
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.#heardAt = performance.now();
      if (this.#state === "connecting") this.#enter("preparing");
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      this.#heardAt = performance.now();
      this.#take(unpack(data));
    };
    socket.onclose = ({ code }) => {
      if (socket === this.#socket) this.#closed(opened, code, url);
    };
  }

  #take({ kind, samples, text, content }) {
    if (kind === "audio") this.#on.audio(samples);
    if (kind === "text") this.#on.text(text);
    if (kind === "error") this.#serverError = text;
    if (kind === "handshake") this.#begin();
    if (kind !== "metadata") return;
    if (content.type === "queued" && content.position > 0) this.#enter("queued", content.position);
    if (content.type === "queued" && content.position === 0) this.#enter("preparing");
    if (content.type === "dropped") this.#on.dropped(content.frames);
    if (["done", "refused", "said"].includes(content.type)) this.#on.answered(content);
    if (content.type === "session") this.#on.session((this.#session = content));
  }

  #begin() {
    this.#attempts = 0;
    this.#closeAbandoned();
    this.#enter("talking");
  }

  // Runs once a second, because a dead connection may give no event.
  #look() {
    if (this.#retry) return;
    const now = performance.now();
    const { readyState } = this.#socket;
    if (readyState === WebSocket.CONNECTING && now - this.#openedAt > OPEN_TIMEOUT_MS) this.#abandon();
    if (readyState === WebSocket.OPEN && now - this.#heardAt > SILENCE_MS) this.#abandon();
  }

  #abandon() {
    if (this.#socket.readyState === WebSocket.CONNECTING) this.#socket.close();
    else this.#abandoned.push(this.#socket);
    this.#socket = null;
    if (this.#session?.resume) this.#lose();
    else this.#end(UNREACHABLE);
  }

  async #closed(opened, code, url) {
    if (opened && !isLoss(code)) {
      this.#end(endingOf(code, this.#serverError));
      return;
    }
    if (!opened) {
      const socket = this.#socket;
      const { final, reason, status } = await refusal(url);
      if (socket !== this.#socket || this.#state === "ended") return;
      if (status === 401) this.#on.tokenRefused();
      if (final || !this.#session?.resume) {
        this.#end(reason);
        return;
      }
    }
    if (this.#session?.resume) this.#lose();
    else this.#end(LOST);
  }

  #lose() {
    const now = performance.now();
    if (this.#state !== "lost") this.#lostAt = now;
    if (now - this.#lostAt > this.#session.resume_seconds * 1000) {
      this.#end(LOST);
      return;
    }
    this.#enter("lost");
    const wait = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#attempts++);
    this.#retry = setTimeout(() => this.#resume(), wait * (0.75 + Math.random() / 2));
  }

  #resume() {
    clearTimeout(this.#retry);
    this.#retry = 0;
    this.#open(resumingQuery(this.#session.resume, this.#token, this.#control));
  }

  #end(reason) {
    clearInterval(this.#watch);
    clearTimeout(this.#retry);
    if (this.#socket) this.#abandoned.push(this.#socket);
    this.#socket = null;
    this.#closeAbandoned();
    this.#enter("ended", reason);
  }

  #closeAbandoned() {
    for (const socket of this.#abandoned.splice(0)) socket.close();
  }
}

// A WebSocket that does not open gives no reason. A POST to the same address starts nothing and returns the refusal. If it
// returns 204, the server accepts the request, and something on the way blocks WebSockets.
async function refusal(url) {
  try {
    const response = await fetch(url, { method: "POST", cache: "no-store", signal: AbortSignal.timeout(5000) });
    const { status } = response;
    if (response.ok) return { final: false, status, reason: BLOCKED };
    const reason = refusalOf(status, await sentenceOf(response), url.searchParams.has("resume"));
    return { final: status < 500, status, reason };
  } catch {
    return { final: false, reason: navigator.onLine ? UNREACHABLE : OFFLINE };
  }
}

// The server's own line. An answer without our headers comes from the HTTP parser or a proxy, and is not for users.
async function sentenceOf(response) {
  const text = (await response.text()).trim();
  const isOurs = response.headers.get("Referrer-Policy") === "no-referrer" && !/[\n<]/.test(text);
  return isOurs ? text : "";
}
