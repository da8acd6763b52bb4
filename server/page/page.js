// The page: its form, its button, and the view of a conversation.

import { audioProblem, openAudio } from "./audio.js";
import { Panel } from "./control.js";
import { Conversation } from "./conversation.js";
import { ReplyTimer } from "./latency.js";
import { PERSONAS } from "./personas.js";
import { FRAME_SAMPLES } from "./protocol.js";
import { Transcript } from "./transcript.js";
import { Trouble } from "./trouble.js";
import { MICROPHONE_GONE, NOT_LOADED, partProblem, STATES, TROUBLES } from "./words.js";

const NO_VOICE = "none";
const FLOOR_DB = -60; // an empty meter
const FIGURES_MS = 500; // between two updates of the figures

const $ = (id) => document.getElementById(id);
const transcript = new Transcript($("transcript"), $("spoken"));
const panel = new Panel(
  { panel: $("control"), words: $("words"), say: $("say"), hold: $("hold"), answer: $("answer") },
  (order) => call?.order(order) ?? false,
);
let call = null; // the current call
let mayControl = false; // as the server says, for the token or the cookie of this page

function show(state, detail, trouble = null) {
  document.body.dataset.state = state;
  document.body.dataset.trouble = trouble ?? "";
  document.body.classList.toggle("calling", call !== null);
  const words = trouble ? TROUBLES[trouble] : STATES[state](detail);
  if ($("status").textContent !== words) $("status").textContent = words; // setting it makes screen readers read it out
  $("status").classList.toggle("wrong", trouble !== null || state === "lost" || (state === "ended" && detail !== ""));
  $("talk").textContent = call ? "Stop" : "Talk";
  $("setup").hidden = call !== null;
  panel.enable(state === "talking");
}

/** Microphone, loudspeaker and connection, from the click on Talk to the end. */
class Call {
  #sound = null;
  #conversation = null;
  #timer = new ReplyTimer();
  #trouble = new Trouble(performance.now());
  #droppedThere = 0; // frames that the server dropped
  #droppedHere = 0; // samples that were not sent
  #playing = { heldMs: 0, underruns: 0 };
  #wakeLock = null;
  #updates = 0; // timer
  #talking = false;
  #over = false;

  async start(settings) {
    show("microphone");
    try {
      const sound = await openAudio({
        allowed: () => this.#over || show("sound"),
        chunk: (samples) => this.#heard(samples),
        playing: (report) => this.#played(report),
        ended: () => this.#end(MICROPHONE_GONE),
      });
      if (this.#over) return sound.close(); // the user pressed Stop while the browser asked
      this.#sound = sound;
    } catch (error) {
      this.#end(error.message || error.name);
      return;
    }
    const control = await controlOf(settings.token);
    if (this.#over) return;
    panel.reset(control);
    this.#updates = setInterval(() => this.#update(), FIGURES_MS);
    this.#conversation = new Conversation({ ...settings, control: control ? "1" : "" }, {
      state: (state, detail) => this.#changed(state, detail),
      audio: (samples) => this.#answered(samples),
      text: (piece) => transcript.add(piece),
      session: (facts) => this.#described(facts),
      dropped: (frames) => this.#lostThere(frames),
      answered: (content) => panel.answered(content),
      tokenRefused: () => askForToken(true),
    });
    await this.lockScreen();
  }

  stop() {
    this.#end("");
  }

  order(content) {
    return this.#conversation?.order(content) ?? false;
  }

  wake() {
    this.#sound?.wake();
  }

  hurry() {
    this.#conversation?.hurry();
  }

  async lockScreen() {
    try {
      this.#wakeLock = await navigator.wakeLock?.request("screen");
      if (this.#over) this.#wakeLock?.release();
    } catch {
      // Low battery, or a hidden page: the conversation continues without the lock.
    }
  }

  #changed(state, detail) {
    if (state === "ended") return this.#end(detail);
    if (state === "lost") this.#sound.pause();
    this.#talking = state === "talking";
    if (this.#talking) {
      this.#timer.restart();
      this.#trouble.restart(performance.now());
    }
    show(state, detail);
  }

  #described({ voice, seed, resumed }) {
    if (resumed) return;
    $("facts").textContent = `Voice ${voice ?? NO_VOICE}, seed ${seed}`;
  }

  #heard(samples) {
    setLevel($("you"), rmsOf(samples));
    this.#trouble.heard(samples, performance.now());
    if (!this.#talking) return;
    if (this.#conversation.send(samples)) this.#timer.sent(samples.length, performance.now());
    else this.#droppedHere += samples.length;
  }

  #answered(samples) {
    this.#timer.answered(performance.now());
    this.#sound.play(samples);
  }

  #lostThere(frames) {
    this.#timer.dropped(frames);
    this.#droppedThere = frames;
  }

  #played(report) {
    this.#playing = report;
    this.#trouble.played(report.underruns, performance.now());
    setLevel($("agent"), report.rms);
  }

  #update() {
    const { medianMs } = this.#timer;
    $("reply").textContent = medianMs === null ? "–" : `${Math.round(medianMs)} ms`;
    $("buffer").textContent = `${Math.round(this.#playing.heldMs)} ms`;
    $("dropped").textContent = this.#droppedThere + Math.round(this.#droppedHere / FRAME_SAMPLES);
    $("gaps").textContent = this.#playing.underruns;
    transcript.pause();
    if (this.#talking) show("talking", undefined, this.#whatIsWrong(performance.now()));
  }

  #whatIsWrong(nowMs) {
    const trouble = this.#trouble.look(this.#timer.waitingMs(nowMs), nowMs);
    return trouble ?? (this.#sound.hasLoudspeaker ? null : "deaf");
  }

  #end(reason) {
    if (this.#over) return;
    this.#over = true;
    this.#conversation?.stop();
    this.#sound?.close();
    this.#wakeLock?.release();
    clearInterval(this.#updates);
    transcript.finish();
    panel.reset(false);
    $("call").hidden = transcript.isEmpty;
    for (const id of ["you", "agent"]) setLevel($(id), 0);
    call = null;
    this.#talking = false;
    show("ended", reason);
    if (!$("token-field").hidden && !$("token").value) $("token").focus();
  }
}

function rmsOf(samples) {
  let energy = 0;
  for (const sample of samples) energy += sample * sample;
  return Math.sqrt(energy / samples.length);
}

function setLevel(meter, rms) {
  const level = Math.min(1, Math.max(0, 1 - (20 * Math.log10(rms || 1e-9)) / FLOOR_DB));
  meter.setAttribute("aria-valuenow", Math.round(100 * level));
  meter.style.setProperty("--level", level.toFixed(3));
}

function start() {
  const { example, ...settings } = Object.fromEntries(new FormData($("form")));
  transcript.clear();
  $("call").hidden = false;
  for (const id of ["facts", "reply", "buffer"]) $(id).textContent = id === "facts" ? "" : "–";
  for (const id of ["dropped", "gaps"]) $(id).textContent = "0";
  call = new Call();
  call.start(settings);
}

const info = (query = "") => fetch(new URL(`api/info${query}`, document.baseURI), { cache: "no-store" });

/** Whether the server lets this page control the conversation; a token that the user entered may allow it. */
async function controlOf(token) {
  if (mayControl || !token) return mayControl;
  try {
    return Boolean((await (await info(`?${new URLSearchParams({ token })}`)).json()).control);
  } catch {
    return false; // the conversation itself tells the user what is wrong
  }
}

/** Fills the form with the server's voices. Returns a problem to show, or null. */
async function load() {
  try {
    const response = await info();
    if (!response.ok) return partProblem(response.status);
    const { voices, takes_prompt: takesPrompt, token_required: needsToken, control } = await response.json();
    mayControl = control === true;
    fillVoices(voices);
    if (takesPrompt === false) leaveOutPrompt();
    askForToken(needsToken);
    $("token").value = new URLSearchParams(location.search).get("token") ?? "";
    return null;
  } catch {
    return NOT_LOADED;
  }
}

/** A model without a prompt has one voice and no persona. */
function leaveOutPrompt() {
  for (const id of ["voice-field", "persona-field"]) $(id).hidden = true;
  for (const id of ["voice", "persona-field"]) $(id).disabled = true;
}

function askForToken(needed) {
  $("token-field").hidden = !needed;
  $("token").disabled = !needed;
  $("token").required = needed;
  $("token").value = "";
}

const GROUPS = { NATF: "Natural, female", NATM: "Natural, male", VARF: "Varied, female", VARM: "Varied, male" };

function fillVoices(voices) {
  const groups = new Map();
  for (const voice of [...voices, NO_VOICE]) {
    const name = voice.replace(/\.pt$/, "");
    const label = voice === NO_VOICE ? "No voice: the model chooses" : name;
    const group = voice === NO_VOICE ? "" : (GROUPS[name.replace(/\d+$/, "")] ?? "Others");
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(new Option(label, name, name === "NATF0", name === "NATF0"));
  }
  for (const [group, options] of groups) $("voice").append(...(group ? [groupOf(group, options)] : options));
}

function groupOf(label, options) {
  const group = document.createElement("optgroup");
  group.label = label;
  group.append(...options);
  return group;
}

function fillExamples() {
  PERSONAS.forEach(({ name, text }, i) => {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "example", value: name, checked: i === 0 });
    radio.addEventListener("change", () => ($("persona").value = text));
    label.append(radio, document.createTextNode(name));
    $("examples").append(label);
  });
  $("persona").value = PERSONAS[0].text;
  $("persona").addEventListener("input", () => {
    for (const radio of document.querySelectorAll("[name=example]")) {
      radio.checked = PERSONAS.some(({ name, text }) => name === radio.value && text === $("persona").value);
    }
  });
}

function complain(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = false;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (call) call.stop();
  else start();
});
$("form").addEventListener("invalid", () => ($("advanced").open = true), true); // a hidden field cannot show its error
for (const gesture of ["pointerdown", "keydown"]) document.addEventListener(gesture, () => call?.wake());
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") return;
  call?.wake();
  call?.lockScreen();
});
addEventListener("online", () => call?.hurry());
addEventListener("pagehide", () => call?.stop());

fillExamples();
const problem = audioProblem() ?? (await load());
if (problem) complain(problem);
$("talk").disabled = problem !== null;
$("stuck").hidden = true;
show("ready");
