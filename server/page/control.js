// The panel with which a user lets the agent say words and holds it. page.js shows it if the server allows it.

import { ANSWERS } from "./words.js";

export class Panel {
  #parts;
  #order;
  #numbers = 0;
  #orders = new Map(); // by id, until the last word about them

  /** `parts`: the elements panel, words, say, hold, answer. `order(content)` sends an order; false if it cannot. */
  constructor(parts, order) {
    this.#parts = parts;
    this.#order = order;
    parts.say.addEventListener("click", () => this.#say());
    parts.hold.addEventListener("click", () => this.#toggle());
    parts.words.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault(); // it would press the page's button, which ends the conversation
      this.#say();
    });
  }

  /** A new conversation; `allowed`: whether the server lets this client control it. */
  reset(allowed) {
    this.#orders.clear();
    this.#parts.panel.hidden = !allowed;
    this.#parts.words.value = "";
    this.#hold(false);
    this.#tell("");
  }

  /** Whether orders can be sent now. */
  enable(can) {
    this.#parts.panel.disabled = !can;
  }

  /** The server's message about an order. */
  answered({ type, id, order, reason, state, words }) {
    const sent = this.#orders.get(id);
    if (!sent) return; // another client's
    if (type === "refused") {
      this.#tell(ANSWERS.refused(reason), true);
      this.#parts.words.value ||= sent.text ?? ""; // to correct them
    }
    if (type === "done" && order !== "say") this.#hold(order === "hold");
    if (type === "said" && !this.#holds) this.#tell(ANSWERS[state](words), state === "cut");
    if (type === "refused" || state === "done" || state === "cut" || order === "hold" || order === "release") {
      this.#orders.delete(id);
    }
  }

  #say() {
    const text = this.#parts.words.value.trim();
    this.#parts.words.focus();
    if (!text || !this.#send({ type: "say", text })) return;
    this.#parts.words.value = "";
    this.#tell(ANSWERS.queued());
  }

  #toggle() {
    this.#send({ type: this.#holds ? "release" : "hold" });
  }

  get #holds() {
    return this.#parts.hold.getAttribute("aria-pressed") === "true";
  }

  #send(order) {
    const id = `page-${++this.#numbers}`;
    if (!this.#order({ id, ...order })) return false;
    this.#orders.set(id, order);
    return true;
  }

  #hold(holds) {
    this.#parts.hold.setAttribute("aria-pressed", holds);
    this.#tell(holds ? ANSWERS.held() : "");
  }

  #tell(words, isWrong = false) {
    this.#parts.answer.textContent = words;
    this.#parts.answer.classList.toggle("wrong", isWrong);
  }
}
