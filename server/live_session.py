"""The `session` object of GPT-Live: from a client's JSON to checked settings, and back. No I/O.

Called by `server.live_protocol`. Only the first fault is reported, as in the original service.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pplex.server.openai_events import IMMUTABLE, UNSUPPORTED, EventError, check_size, object_at, wrong
from pplex.server.openai_settings import MAX_NAME, persona_at, voice_at
from pplex.server.sounds import SOUNDS, Sound

MAX_DELEGATION = 65_536  # characters of JSON: it is sent back
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
    """The settings in `session.start`, for a bundle's `voices`. Raises EventError."""
    fields = object_at(session, "session")
    model = fields.get("model")
    if type(model) is not str or not 0 < len(model) <= MAX_NAME:
        raise wrong("session.model", f"a name of 1 to {MAX_NAME} characters")
    audio = object_at(fields.get("audio"), "session.audio", optional=True)
    output = object_at(audio.get("output"), "session.audio.output", optional=True)
    _check_refused(fields)
    chosen, voice = voice_at(output.get("voice"), "session.audio.output.voice", voices, takes_prompt)
    instructions = persona_at(fields.get("instructions"), "session.instructions")
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
    """The settings after `session.update`, which may only change the delegation. Raises EventError."""
    fields = object_at(session, "session")
    fixed = sorted(name[:MAX_NAME] for name in fields if name not in ("delegation", "triggers"))
    if fixed:
        raise EventError(IMMUTABLE, f"{fixed[0]!a} cannot be changed in a running session.", f"session.{fixed[0]}")
    _check_refused(fields)
    if "delegation" not in fields:
        return running
    return replace(running, delegation=_delegation(fields["delegation"]))


def _check_refused(fields: Mapping[str, Any]) -> None:
    """Refuse what promises something that this server does not do."""
    store = fields.get("store")
    if store is True:
        raise EventError(UNSUPPORTED, "This server stores no sessions: leave store out.", "session.store")
    if store is not None and store is not False:
        raise wrong("session.store", "true or false")
    if fields.get("triggers"):
        raise EventError(UNSUPPORTED, "This server has no triggers: leave them out.", "session.triggers")
    identifier = fields.get("safety_identifier")
    if identifier is not None and type(identifier) is not str:
        raise wrong("session.safety_identifier", "a string")


def _sound(given: Any) -> Sound:
    form = object_at(given, "session.audio.format", optional=True)
    kind, rate = form.get("type", SOUNDS[0].name), form.get("rate")
    of_kind = [sound for sound in SOUNDS if sound.name == kind]
    if not of_kind:
        raise wrong("session.audio.format.type", "audio/pcm, audio/pcmu or audio/pcma")
    fitting = [sound for sound in of_kind if rate is None or (type(rate) is int and rate == sound.rate_hz)]
    if not fitting:
        rates = " or ".join(str(sound.rate_hz) for sound in of_kind)
        raise wrong("session.audio.format.rate", f"{rates} for {kind}")
    return fitting[0]


def _delegation(given: Any) -> Mapping[str, Any] | None:
    path = "session.delegation"
    if given is None:
        return None
    fields = object_at(given, path)
    kind = fields.get("type")
    if kind == "decisions":
        raise EventError(UNSUPPORTED, "This server makes no decisions: choose client or responses.", path)
    if kind not in ("client", "responses"):
        raise wrong(f"{path}.type", "client or responses")
    check_size(fields, MAX_DELEGATION, path)
    return fields


def _history(given: Any) -> Sequence[Any]:
    """The messages of an earlier session: checked, and not used."""
    path = "session.input"
    if given is None:
        return ()
    if type(given) is not list or len(given) > MAX_HISTORY:
        raise wrong(path, f"a list of at most {MAX_HISTORY} messages")
    for place, message in enumerate(given):
        where = f"{path}[{place}]"
        fields = object_at(message, where)
        if fields.get("type", "message") != "message" or fields.get("role") not in ROLES:
            raise wrong(where, f"a message with the role {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        parts = fields.get("content")
        if type(parts) is not list or not all(map(_is_text, parts)):
            raise wrong(f"{where}.content", "a list of texts")
    return given


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in PARTS and type(part.get("text")) is str


def _unknown(fields: Mapping[str, Any], known: Iterable[str], path: str) -> list[str]:
    return [f"{path}.{name[:MAX_NAME]}" for name in fields if name not in known][:MAX_HISTORY]
