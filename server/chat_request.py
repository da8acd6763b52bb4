"""Parses and checks the query of `/api/chat`: called by `server.chat_routes`. Raises RequestError with a reason to show."""

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pplex.runtime.errors import PromptError
from pplex.runtime.sampling import Sampling
from pplex.runtime.voice_file import default_voice
from pplex.server.request import ConversationRequest, RequestError

AUDIO_FORMATS = ("opus", "s16", "f32")
DEFAULT_VOICE = "NATF0"
NO_VOICE = "none"
MAX_SEED = (1 << 64) - 1
RANDOM_SEED_BITS = 32  # clients receive a random seed as JSON, whose numbers may be doubles

SAMPLING = {  # the query's name, and Sampling's
    "text_temperature": "text_temperature",
    "text_topk": "text_top_k",
    "audio_temperature": "audio_temperature",
    "audio_topk": "audio_top_k",
}
# Parameters without effect, with the defaults of the official client.
PROMPT = ("voice_prompt", "text_prompt")  # a Moshi model takes neither
UNUSED = {"pad_mult": 0.0, "repetition_penalty": 1.0, "repetition_penalty_context": 64.0}
SEEDS = ("seed", "text_seed", "audio_seed")
CREDENTIALS = ("token", "worker_auth_id")
EARLY, CONTROL = "early_metadata", "control"
CONTINUED = {  # keys of what goes on with its own settings
    "resume": "A conversation that is resumed keeps its settings",
    "snapshot": "A snapshot has its own settings",
}
OF_CONNECTION = ("audio", EARLY, CONTROL, "email", *CREDENTIALS)
KNOWN = (*PROMPT, *SAMPLING, *SEEDS, *UNUSED, "greeting", *CONTINUED, *OF_CONNECTION)
IGNORED_MOST = 16  # names of ignored parameters that a client gets back


@dataclass(frozen=True, kw_only=True)
class ChatRequest(ConversationRequest):
    """A conversation over `/api/chat`, or the key of a conversation to resume."""

    audio: str = AUDIO_FORMATS[0]
    resume: str | None = None
    early_metadata: bool = False
    control: bool = False  # whether the client wants to send orders

    @property
    def knows_us(self) -> bool:
        """Whether the client was written for this server, and not only for the reference's protocol."""
        return self.early_metadata or self.control or self.audio != AUDIO_FORMATS[0]


def parse_query(
    query: Iterable[tuple[str, str]], voices: Mapping[str, object], takes_prompt: bool = True
) -> ChatRequest:
    """The request from (name, value) pairs, for a bundle's `voices`. Raises RequestError that lists all faults.

    As in the reference, unknown parameters are ignored, and so is the second value of a known parameter. `takes_prompt`:
    whether the model begins with a prompt. If not, voice and persona are ignored, too.
    """
    given, ignored, wrong = dict[str, str](), list[str](), list[str]()
    known = KNOWN if takes_prompt else set(KNOWN).difference(PROMPT)
    for name, value in query:
        if name not in known or name in given:
            ignored.append(name)
        else:
            given[name] = value
    given = {name: value for name, value in given.items() if value}
    read = _Reader(given, wrong)
    audio = given.get("audio", AUDIO_FORMATS[0])
    if audio not in AUDIO_FORMATS:
        wrong.append(f"audio is {_shown(audio)}, but must be {', '.join(AUDIO_FORMATS[:-1])} or {AUDIO_FORMATS[-1]}.")
    continued = next((name for name in CONTINUED if name in given), None)
    if continued:
        if others := sorted(set(given) - {continued, *OF_CONNECTION}):
            wrong.append(f"{CONTINUED[continued]}: leave out {', '.join(others)}.")
        request = ChatRequest(audio=audio, resume=given.get("resume"), snapshot=given.get("snapshot"))
    else:
        ignored += [name for name, default in UNUSED.items() if read.number(name, default) != default]
        persona = given.get("text_prompt", "")
        request = ChatRequest(
            voice=read.voice(voices),
            persona=persona,
            seed=read.seed(),
            sampling=read.sampling(),
            greeting=given.get("greeting"),
            audio=audio,
        )
    request = replace(request, early_metadata=read.flag(EARLY), control=read.flag(CONTROL), ignored=_names(ignored))
    if wrong:
        raise RequestError(400, " ".join(wrong[:8]))
    return request


def _names(ignored: Iterable[str]) -> tuple[str, ...]:
    """Each name once, at most IGNORED_MOST names."""
    return tuple(_shown(name)[1:-1] for name in list(dict.fromkeys(ignored))[:IGNORED_MOST])


class _Reader:
    """Typed values of the given parameters. For an invalid value it adds a message to `wrong`, and returns a default."""

    def __init__(self, given: Mapping[str, str], wrong: list[str]):
        self._given, self._wrong = given, wrong

    def number(self, name: str, default: float) -> float:
        text = self._given.get(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self._wrong.append(f"{name} is {_shown(text or '')}, but must be a number.")
            return default
        return value

    def whole(self, name: str, default: int) -> int:
        text = self._given.get(name)
        if text is None:
            return default
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            self._wrong.append(f"{name} is {_shown(text)}, but must be a whole number.")
            return default
        return int(text)

    def flag(self, name: str) -> bool:
        text = self._given.get(name, "0")
        if text not in ("0", "1"):
            self._wrong.append(f"{name} is {_shown(text)}, but must be 0 or 1.")
        return text == "1"

    def voice(self, voices: Mapping[str, object]) -> str | None:
        name = self._given.get("voice_prompt")
        if name is None:
            return default_voice(voices, DEFAULT_VOICE)
        if name == NO_VOICE:
            return None
        if name.removesuffix(".pt") not in voices:
            known = f"This server has {', '.join([*voices, NO_VOICE])}."
            if not voices:
                known = f"This server has no voices: leave voice_prompt out, or send {NO_VOICE}."
            self._wrong.append(f"Unknown voice {_shown(name)}. {known}")
            return None
        return name.removesuffix(".pt")

    def seed(self) -> int:
        """The seed: `seed`, else a combination of `text_seed` and `audio_seed`, else a random number."""
        values = {name: self.whole(name, -1) for name in SEEDS if name in self._given}
        for name, value in values.items():
            if not -1 <= value <= MAX_SEED:
                self._wrong.append(f"{name} is {value}, but must be 0 to 2^64 - 1, or -1 for a random seed.")
        if values.get("seed", -1) >= 0:
            return values["seed"]
        halves = values.get("text_seed", -1), values.get("audio_seed", -1)
        if min(halves) >= 0:
            return ((halves[0] << 32) ^ halves[1]) & MAX_SEED
        return max(*halves) if max(halves) >= 0 else secrets.randbits(RANDOM_SEED_BITS)

    def sampling(self) -> Sampling:
        default, values = Sampling(), dict[str, float]()
        for name, attribute in SAMPLING.items():
            fallback = getattr(default, attribute)
            read = self.whole if isinstance(fallback, int) else self.number
            values[attribute] = read(name, fallback)
        try:
            return Sampling(**values)  # type: ignore[arg-type]
        except PromptError as error:
            reason = str(error)
            for name, attribute in SAMPLING.items():
                reason = reason.replace(attribute, name)
            self._wrong.append(reason)
            return default


def _shown(value: str) -> str:
    """A client's text for a message: printable, and at most a line."""
    return ascii(value if len(value) <= 60 else value[:57] + "...")
