// Shows what the agent says piece by piece, and gives it to screen readers sentence by sentence.

const PAUSE_MS = 1500; // after this pause a new paragraph begins
const MOST_PARAGRAPHS = 500;
const MOST_UNSPOKEN = 240; // characters; a longer text without a full stop is read out, too
const NEAR_END_PX = 48; // if the user has scrolled back further, the text does not scroll

export class Transcript {
  #seen;
  #spoken;
  #paragraph = null;
  #unspoken = "";
  #lastAt = 0; // ms

  /** `seen` is the element that shows it, `spoken` the live region that reads it out. */
  constructor(seen, spoken) {
    this.#seen = seen;
    this.#spoken = spoken;
  }

  get isEmpty() {
    return this.#seen.childElementCount === 0;
  }

  add(piece) {
    this.pause();
    const follows = this.#seen.scrollHeight - this.#seen.scrollTop - this.#seen.clientHeight < NEAR_END_PX;
    if (!this.#paragraph) this.#startParagraph();
    this.#paragraph.append(this.#paragraph.textContent ? piece : piece.trimStart());
    this.#unspoken += piece;
    this.#lastAt = performance.now();
    if (/[.!?…]["'”’)]*\s*$/.test(this.#unspoken) || this.#unspoken.length > MOST_UNSPOKEN) this.#speak();
    if (follows) this.#seen.scrollTop = this.#seen.scrollHeight;
  }

  /** Ends the paragraph after a pause. Call it regularly. */
  pause() {
    if (this.#paragraph && performance.now() - this.#lastAt > PAUSE_MS) this.finish();
  }

  finish() {
    this.#speak();
    this.#paragraph = null;
  }

  clear() {
    this.finish();
    this.#seen.replaceChildren();
    this.#spoken.replaceChildren();
  }

  #startParagraph() {
    this.#paragraph = document.createElement("p");
    this.#seen.append(this.#paragraph);
    while (this.#seen.childElementCount > MOST_PARAGRAPHS) this.#seen.firstElementChild.remove();
  }

  #speak() {
    const sentence = this.#unspoken.trim();
    this.#unspoken = "";
    if (!sentence) return;
    const line = document.createElement("p");
    line.textContent = sentence;
    this.#spoken.append(line);
    while (this.#spoken.childElementCount > 3) this.#spoken.firstElementChild.remove();
  }
}
