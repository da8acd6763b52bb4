"""What OpenAI's protocols share: an event in a message, its checked fields, and the error that refuses it. No I/O.

Called by `live_protocol`, `realtime_protocol` and their parsers.
"""

import itertools
import json
import secrets
from collections.abc import Mapping
from typing import Any

from pplex.server.foreign_audio import LONGEST_MARK, container_of
from pplex.server.sounds import unpacked
from pplex.server.wire import Close, CloseReason

INVALID, UNSUPPORTED, IMMUTABLE = "invalid_value", "unsupported_parameter", "immutable_parameter"
TOO_LONG = "string_above_max_length"
MAX_ID = 512  # characters of an event_id
MAX_DEPTH = 64  # of objects and lists in each other, in what is sent back
OWN_FAULTS = ("server_error", "server_busy")


class EventError(Exception):
    """What a client asked for is refused: OpenAI's code, the sentence, and the path of the wrong value."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def to_dict(self) -> dict[str, Any]:
        """As in an `error` event."""
        kind = "server_error" if self.code in OWN_FAULTS else "invalid_request_error"
        return {"type": kind, "code": self.code, "message": self.message, "param": self.param}


def decoded(message: str) -> Mapping[str, Any]:
    """The event in a message: an object with a type. Raises EventError."""
    try:
        event = _DECODER.decode(message)
    except RecursionError:
        raise EventError("invalid_json", "This JSON is nested too deeply.") from None
    except ValueError as error:
        raise EventError("invalid_json", f"This is not JSON: {error}"[:200]) from error
    if type(event) is not dict or type(event.get("type")) is not str:
        raise EventError("invalid_event", "An event is an object with a type, a string.", "type")
    return event


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)  # kept: to make one takes longer than to decode 20 ms of audio


def id_of(event: Mapping[str, Any]) -> str | None:
    """The client's name for an event, if it has one. Raises EventError."""
    event_id = event.get("event_id")
    if event_id is not None and (type(event_id) is not str or len(event_id) > MAX_ID):
        raise EventError(INVALID, f"event_id must be a string of at most {MAX_ID} characters.", "event_id")
    return event_id


def audio_of(event: Mapping[str, Any]) -> bytes:
    """The bytes in the field `audio`. Raises EventError for what is not base64, or has a header."""
    payload = unpacked(event.get("audio"))
    if payload is None:
        raise EventError("invalid_audio", "audio must be base64.", "audio")
    container = container_of(payload[:LONGEST_MARK])
    if container is not None:
        raise EventError("invalid_audio", f"audio is {container}: send samples without a header.", "audio")
    return payload


def object_at(given: Any, path: str, optional: bool = False) -> Mapping[str, Any]:
    """An object of JSON; if it is `optional`, null is an empty one. Raises EventError."""
    if given is None and optional:
        return {}
    if type(given) is not dict:
        raise wrong(path, "an object")
    return given


def check_size(given: Any, most: int, path: str) -> None:
    """Check a value that is sent back, at most `most` characters of JSON. Raises EventError."""
    try:
        size = len(json.dumps(given, allow_nan=False)) if _is_flat(given, MAX_DEPTH) else None
    except ValueError:
        size = None
    if size is None:
        raise wrong(path, f"an object with finite numbers, and nested at most {MAX_DEPTH} times")
    if size > most:
        raise EventError(TOO_LONG, f"{path} may have {most:,} characters of JSON.", path)


def _is_flat(given: Any, levels: int) -> bool:
    """Whether objects and lists are nested at most `levels` times."""
    inner = given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else ()
    return levels > 0 and all(_is_flat(one, levels - 1) for one in inner)


def wrong(path: str, must_be: str) -> EventError:
    """A value that must be something else."""
    return EventError(INVALID, f"{path} must be {must_be}.", path)


def event(kind: str, **fields: Any) -> str:
    """A server's event."""
    return json.dumps({"type": kind, "event_id": new_event_id(), **fields})


def new_id(kind: str) -> str:
    """A unique name."""
    return f"{kind}_{secrets.token_hex(8)}"


_RUN, _EVENTS = secrets.token_hex(4), itertools.count()


def new_event_id() -> str:
    """A unique name of an event. Counted, not drawn: every frame has one, and random bytes need a system call."""
    return f"event_{_RUN}{next(_EVENTS):08x}"


def shown(value: str) -> str:
    """A client's text as part of a sentence."""
    return ascii(value if len(value) <= 60 else f"{value[:57]}...")


def fault_of(why: CloseReason) -> EventError:
    """Why a connection ends, as an error."""
    if why.code is Close.TRY_LATER:
        return EventError("server_busy", why.reason)
    if why.cause == "prompt":
        return EventError(TOO_LONG, why.reason, "session.instructions")
    if why.cause == "protocol":
        return EventError("rate_limit_exceeded" if why.code is Close.POLICY else INVALID, why.reason)
    return EventError("server_error", why.reason)
