"""The `session` object of the Realtime API: what clients change in it, and what they get back. No I/O.

Called by `server.realtime_protocol`. Only known keys are sent back: Pipecat stops reading, without a word, at one that it
does not expect.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pplex.server.openai_events import check_size, object_at, wrong
from pplex.server.openai_settings import DEFAULT, MAX_NAME, persona_at, voice_at
from pplex.server.sounds import SOUNDS, Sound

MAX_ECHO = 131_072  # characters of JSON that have no effect, and are sent back
FORMATS = {sound.name: sound for sound in SOUNDS if sound.rate_hz != 16_000}
FORMAT_NAMES = "audio/pcm, audio/pcmu or audio/pcma"
TRANSCRIPTION = ("model", "language", "prompt")
TURN_DETECTION: Mapping[str, Any] = {  # the service's default
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "create_response": True,
    "interrupt_response": True,
}
TURN_KEYS = (*TURN_DETECTION, "idle_timeout_ms", "eagerness")


@dataclass(frozen=True)
class RealtimeSession:
    """Checked settings. `chosen` is the voice as the client named it; `voice` is one of the bundle's, or None for none.

    hears, says: the formats of the user's and the agent's audio. is_instructed: whether the client sent instructions.
    settings, input_settings, output_settings: those without an effect on the model, for `session`, `audio.input` and
    `audio.output`.
    """

    model: str
    chosen: str = DEFAULT
    voice: str | None = None
    instructions: str = ""
    is_instructed: bool = False
    hears: Sound = SOUNDS[0]
    says: Sound = SOUNDS[0]
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
            "truncation": "auto",
        }
    )
    input_settings: Mapping[str, Any] = field(
        default_factory=lambda: {"transcription": None, "noise_reduction": None, "turn_detection": TURN_DETECTION}
    )
    output_settings: Mapping[str, Any] = field(default_factory=lambda: {"speed": 1.0})

    def to_dict(self) -> dict[str, Any]:
        """The session as events show it, without what only a connection knows."""
        return {
            "type": "realtime",
            "object": "realtime.session",
            "model": self.model,
            "output_modalities": ["audio"],
            "instructions": self.instructions,
            "audio": {
                "input": {"format": format_of(self.hears), **self.input_settings},
                "output": {"format": format_of(self.says), "voice": self.chosen, **self.output_settings},
            },
            **self.settings,
        }

    def in_force(self, running: "RealtimeSession") -> "RealtimeSession":
        """These settings, where a running conversation can still take them."""
        return replace(
            self,
            model=running.model,
            chosen=running.chosen,
            voice=running.voice,
            instructions=running.instructions,
            hears=running.hears,
            says=running.says,
        )


def new_session(model: str, voices: Collection[str], takes_prompt: bool) -> RealtimeSession:
    """The session before a client has changed it."""
    chosen, voice = voice_at(None, "session.audio.output.voice", voices, takes_prompt)
    return RealtimeSession(model[:MAX_NAME], chosen, voice)


def changed(
    session: RealtimeSession, given: Any, voices: Collection[str], takes_prompt: bool = True
) -> RealtimeSession:
    """The settings after `session.update`, which names only what changes. Raises EventError."""
    fields = object_at(given, "session")
    if fields.get("type", "realtime") != "realtime":
        raise wrong("session.type", "realtime: this server has no sessions that only transcribe")
    if fields.get("model") is not None:
        session = replace(session, model=_name(fields["model"], "session.model"))
    if "instructions" in fields:
        instructions = persona_at(fields["instructions"], "session.instructions")
        is_instructed = session.is_instructed or fields["instructions"] is not None
        session = replace(session, instructions=instructions if takes_prompt else "", is_instructed=is_instructed)
    settings = _taken(session.settings, fields, SETTINGS, "session")
    audio = object_at(fields.get("audio"), "session.audio", optional=True)
    session = _with_input(replace(session, settings=settings), audio.get("input"))
    session = _with_output(session, audio.get("output"), voices, takes_prompt)
    check_size([session.settings, session.input_settings, session.output_settings], MAX_ECHO, "session")
    return session


def _with_input(session: RealtimeSession, given: Any) -> RealtimeSession:
    path = "session.audio.input"
    fields = object_at(given, path, optional=True)
    hears = _sound(fields["format"], f"{path}.format") if "format" in fields else session.hears
    return replace(session, hears=hears, input_settings=_taken(session.input_settings, fields, INPUT, path))


def _with_output(session: RealtimeSession, given: Any, voices: Collection[str], takes_prompt: bool) -> RealtimeSession:
    path = "session.audio.output"
    fields = object_at(given, path, optional=True)
    says = _sound(fields["format"], f"{path}.format") if "format" in fields else session.says
    chosen, voice = session.chosen, session.voice
    if fields.get("voice") is not None:
        chosen, voice = voice_at(fields["voice"], f"{path}.voice", voices, takes_prompt)
    output = _taken(session.output_settings, fields, OUTPUT, path)
    return replace(session, says=says, chosen=chosen, voice=voice, output_settings=output)


def _taken(
    settings: Mapping[str, Any], fields: Mapping[str, Any], known: Mapping[str, "Check"], path: str
) -> Mapping[str, Any]:
    """The settings without effect, with the new values of the known ones. Null changes only what can be null."""
    named = {name: check for name, check in known.items() if name in fields}
    given = {name: check(fields[name], f"{path}.{name}") for name, check in named.items()}
    given = {name: value for name, value in given.items() if value is not None or name in NULLABLE}
    return {**settings, **given}


def format_of(sound: Sound) -> dict[str, Any]:
    """A format as events name it. G.711 has no rate there."""
    return {"type": sound.name} if sound.law else {"type": sound.name, "rate": sound.rate_hz}


def _sound(given: Any, path: str) -> Sound:
    fields = object_at(given, path, optional=True)
    kind = fields.get("type", SOUNDS[0].name)
    sound = FORMATS.get(kind) if type(kind) is str else None
    if sound is None:
        raise wrong(f"{path}.type", FORMAT_NAMES)
    rate = fields.get("rate")
    if rate is not None and (type(rate) is not int or rate != sound.rate_hz):
        raise wrong(f"{path}.rate", f"{sound.rate_hz} for {kind}")
    return sound


# Settings without an effect: their types are checked, because they are sent back.

Check = Callable[[Any, str], Any]


def _name(given: Any, path: str) -> str:
    if type(given) is not str or not 0 < len(given) <= MAX_NAME:
        raise wrong(path, f"a name of 1 to {MAX_NAME} characters")
    return given


def _number(given: Any, path: str) -> int | float:
    if type(given) not in (int, float):
        raise wrong(path, "a number")
    number: int | float = given
    return number


def _tokens(given: Any, path: str) -> int | str:
    if type(given) is not int and given != "inf":
        raise wrong(path, "a whole number, or inf")
    tokens: int | str = given
    return tokens


def _list(given: Any, path: str) -> list[Any]:
    if type(given) is not list or not all(type(each) is dict for each in given):
        raise wrong(path, "a list of objects")
    return given


def _name_or_object(given: Any, path: str) -> Any:
    return given if type(given) is dict else _name(given, path)


def _optional(check: Check) -> Check:
    return lambda given, path: None if given is None else check(given, path)


def _part(keys: Collection[str]) -> Check:
    """An object, of which these keys are kept."""

    def check(given: Any, path: str) -> dict[str, Any]:
        return {key: value for key, value in object_at(given, path).items() if key in keys}

    return check


SETTINGS: Mapping[str, Check] = {
    "tools": _optional(_list),
    "tool_choice": _optional(_name_or_object),
    "max_output_tokens": _optional(_tokens),
    "tracing": _optional(_name_or_object),
    "truncation": _optional(_name_or_object),
}
INPUT: Mapping[str, Check] = {
    "transcription": _optional(_part(TRANSCRIPTION)),
    "noise_reduction": _optional(_part(("type",))),
    "turn_detection": _optional(_part(TURN_KEYS)),
}
OUTPUT: Mapping[str, Check] = {"speed": _optional(_number)}
NULLABLE = ("tracing", "transcription", "noise_reduction", "turn_detection")
