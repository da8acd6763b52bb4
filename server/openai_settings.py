"""Settings that the sessions of OpenAI's protocols share: the voice and the persona. No I/O.

Called by `live_session` and `realtime_session`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pplex.runtime.voice_file import default_voice
from pplex.server.chat_request import DEFAULT_VOICE
from pplex.server.openai_events import TOO_LONG, EventError, wrong

MAX_INSTRUCTIONS = 32_768  # characters
MAX_NAME = 256  # characters of a model, a voice or an identifier
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


def voice_at(given: Any, path: str, voices: Collection[str], takes_prompt: bool) -> tuple[str, str | None]:
    """A voice as the client named it, and as the bundle names it; None for a model without voices. Raises EventError."""
    if isinstance(given, Mapping):
        given, path = given.get("id", ""), f"{path}.id"
    chosen = DEFAULT if given is None else given
    if type(chosen) is not str:
        raise wrong(path, "a string, or an object with an id")
    own = chosen.removesuffix(".pt")
    if not takes_prompt:
        return chosen[:MAX_NAME], None
    if own in voices:
        return own, own
    if chosen in VOICES:
        return chosen, default_voice(voices, VOICES[chosen] if VOICES[chosen] in voices else DEFAULT_VOICE)
    raise wrong(path, f"one of this server's ({', '.join(voices) or 'it has none'}) or of OpenAI's voices")


def persona_at(given: Any, path: str) -> str:
    """A text for the model; null is an empty one. Raises EventError."""
    if given is not None and type(given) is not str:
        raise wrong(path, "a string or null")
    text: str = given or ""
    if len(text) > MAX_INSTRUCTIONS:
        raise EventError(TOO_LONG, f"{path} has {len(text):,} characters, but may have {MAX_INSTRUCTIONS:,}.", path)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise wrong(path, "text without half a surrogate pair")
    return text
