"""The `session` object of GPT-Live: from a client's JSON to checked settings, and back. No I/O.

Called by `server.live_protocol`. Only the first fault is reported, as in the original service.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pplex.runtime.voice_file import default_voice
from pplex.server.chat_request import DEFAULT_VOICE
from pplex.server.sounds import SOUNDS, Sound

INVALID, UNSUPPORTED, IMMUTABLE = "invalid_value", "unsupported_parameter", "immutable_parameter"
TOO_LONG = "string_above_max_length"
MAX_INSTRUCTIONS = 32_768  # characters
MAX_DELEGATION = 65_536  # characters of JSON: it is sent back
MAX_NAME = 256  # characters of a model, a voice or an identifier
MAX_HISTORY = 128  # messages
ROLES = ("developer", "user", "assistant")
PARTS = ("input_text", "output_text", "text")
FIELDS = (
    "model",
    "instructions",
    "audio",
    "delegation",
    "input",
    "store",
    "safety_identifier",
    "client",
    "triggers",
)
VOICES = {  # OpenAI's voices, and the most similar ones of ours, by name
    "alloy": "NATF1",
    "ash": "NATM0",
    "ballad": "NATM1",
    "beacon": "VARM0",
    "bossa": "VARF0",
    "cedar": "NATM2",
    "cinder": "VARM1",
    "coral": "NATF2",
    "delta": "VARM2",
    "echo": "NATM3",
    "gleam": "VARF1",
    "marin": "NATF0",
    "meridian": "VARM3",
    "quartz": "VARF2",
    "ripple": "VARF3",
    "sage": "NATF3",
    "shida": "VARF4",
    "shimmer": "NATF1",
    "stone": "VARM4",
    "tempo": "NATM1",
    "verse": "NATM0",
    "vesper": "NATF2",
    "willow": "NATF3",
}
DEFAULT = "marin"


class LiveError(Exception):
    """What a client asked for is refused: OpenAI's code, the sentence, and the path of the wrong value."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True)
class LiveSession:
    """Checked settings. `chosen` is the voice as the client named it; `voice` is one of the bundle's, or None for none.

    delegation: as the client sent it. unused: fields that have no effect.
    """

    model: str
    instructions: str
    sound: Sound
    chosen: str
    voice: str | None
    delegation: Mapping[str, Any] | None
    unused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The resolved session, without what only a running one has."""
        return {
            "model": self.model,
            "instructions": self.instructions or None,
            "audio": {
                "format": {"type": self.sound.name, "rate": self.sound.rate_hz},
                "output": {"voice": self.chosen},
            },
            "delegation": self.delegation,
            "store": False,
            "triggers": [],
        }


def parse_session(session: Any, voices: Collection[str], takes_prompt: bool) -> LiveSession:
    """The settings in `session.start`, for a bundle's `voices`. Raises LiveError."""
    fields = _object(session, "session")
    model = fields.get("model")
    if type(model) is not str or not 0 < len(model) <= MAX_NAME:
        raise _wrong("session.model", f"a name of 1 to {MAX_NAME} characters")
    audio = _object(fields.get("audio"), "session.audio", optional=True)
    output = _object(audio.get("output"), "session.audio.output", optional=True)
    _check_refused(fields)
    chosen, voice = _voice(output.get("voice"), voices, takes_prompt)
    instructions = _instructions(fields.get("instructions"))
    unused = [*_unknown(fields, FIELDS, "session"), *_unknown(audio, ("format", "output"), "session.audio")]
    unused += _unknown(output, ("voice",), "session.audio.output")
    unused += ["session.input"] if _history(fields.get("input")) else []
    unused += ["session.instructions"] if instructions and not takes_prompt else []
    return LiveSession(
        model,
        instructions if takes_prompt else "",
        _sound(audio.get("format")),
        chosen,
        voice,
        _delegation(fields.get("delegation")),
        tuple(unused),
    )


def changed(running: LiveSession, session: Any) -> LiveSession:
    """The settings after `session.update`, which may only change the delegation. Raises LiveError."""
    fields = _object(session, "session")
    fixed = sorted(name[:MAX_NAME] for name in fields if name not in ("delegation", "triggers"))
    if fixed:
        raise LiveError(IMMUTABLE, f"{fixed[0]!a} cannot be changed in a running session.", f"session.{fixed[0]}")
    _check_refused(fields)
    if "delegation" not in fields:
        return running
    return replace(running, delegation=_delegation(fields["delegation"]))


def _check_refused(fields: Mapping[str, Any]) -> None:
    """Refuse what promises something that this server does not do."""
    store = fields.get("store")
    if store is True:
        raise LiveError(UNSUPPORTED, "This server stores no sessions: leave store out.", "session.store")
    if store is not None and store is not False:
        raise _wrong("session.store", "true or false")
    if fields.get("triggers"):
        raise LiveError(UNSUPPORTED, "This server has no triggers: leave them out.", "session.triggers")
    identifier = fields.get("safety_identifier")
    if identifier is not None and type(identifier) is not str:
        raise _wrong("session.safety_identifier", "a string")


def _sound(given: Any) -> Sound:
    form = _object(given, "session.audio.format", optional=True)
    kind, rate = form.get("type", SOUNDS[0].name), form.get("rate")
    of_kind = [sound for sound in SOUNDS if sound.name == kind]
    if not of_kind:
        raise _wrong("session.audio.format.type", "audio/pcm, audio/pcmu or audio/pcma")
    fitting = [sound for sound in of_kind if rate is None or (type(rate) is int and rate == sound.rate_hz)]
    if not fitting:
        rates = " or ".join(str(sound.rate_hz) for sound in of_kind)
        raise _wrong("session.audio.format.rate", f"{rates} for {kind}")
    return fitting[0]


def _voice(given: Any, voices: Collection[str], takes_prompt: bool) -> tuple[str, str | None]:
    """The voice as the client named it, and as the bundle names it."""
    path = "session.audio.output.voice"
    if isinstance(given, Mapping):
        given, path = given.get("id", ""), f"{path}.id"
    chosen = DEFAULT if given is None else given
    if type(chosen) is not str:
        raise _wrong(path, "a string, or an object with an id")
    own = chosen.removesuffix(".pt")
    if not takes_prompt:
        return chosen[:MAX_NAME], None
    if own in voices:
        return own, own
    if chosen in VOICES:
        return chosen, default_voice(voices, VOICES[chosen] if VOICES[chosen] in voices else DEFAULT_VOICE)
    raise _wrong(path, f"one of this server's ({', '.join(voices) or 'it has none'}) or of OpenAI's voices")


def _instructions(given: Any) -> str:
    path = "session.instructions"
    if given is not None and type(given) is not str:
        raise _wrong(path, "a string or null")
    text: str = given or ""
    if len(text) > MAX_INSTRUCTIONS:
        raise LiveError(TOO_LONG, f"{path} has {len(text):,} characters, but may have {MAX_INSTRUCTIONS:,}.", path)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _wrong(path, "text without half a surrogate pair")
    return text


def _delegation(given: Any) -> Mapping[str, Any] | None:
    path = "session.delegation"
    if given is None:
        return None
    fields = _object(given, path)
    kind = fields.get("type")
    if kind == "decisions":
        raise LiveError(UNSUPPORTED, "This server makes no decisions: choose client or responses.", path)
    if kind not in ("client", "responses"):
        raise _wrong(f"{path}.type", "client or responses")
    try:
        size = len(json.dumps(fields, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "an object with finite numbers, and less deeply nested") from error
    if size > MAX_DELEGATION:
        raise LiveError(TOO_LONG, f"{path} may have {MAX_DELEGATION:,} characters of JSON.", path)
    return fields


def _history(given: Any) -> Sequence[Any]:
    """The messages of an earlier session: checked, and not used."""
    path = "session.input"
    if given is None:
        return ()
    if type(given) is not list or len(given) > MAX_HISTORY:
        raise _wrong(path, f"a list of at most {MAX_HISTORY} messages")
    for place, message in enumerate(given):
        where = f"{path}[{place}]"
        fields = _object(message, where)
        if fields.get("type", "message") != "message" or fields.get("role") not in ROLES:
            raise _wrong(where, f"a message with the role {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        parts = fields.get("content")
        if type(parts) is not list or not all(map(_is_text, parts)):
            raise _wrong(f"{where}.content", "a list of texts")
    return given


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in PARTS and type(part.get("text")) is str


def _object(given: Any, path: str, optional: bool = False) -> Mapping[str, Any]:
    if given is None and optional:
        return {}
    if type(given) is not dict:
        raise _wrong(path, "an object")
    return given


def _unknown(fields: Mapping[str, Any], known: Iterable[str], path: str) -> list[str]:
    return [f"{path}.{name[:MAX_NAME]}" for name in fields if name not in known][:MAX_HISTORY]


def _wrong(path: str, must_be: str) -> LiveError:
    return LiveError(INVALID, f"{path} must be {must_be}.", path)
