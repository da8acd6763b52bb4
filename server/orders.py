"""A client's orders to its running conversation, from JSON to `Order`. No I/O. Called by `server.control`.

docs/protocol.md describes them. What an order does is in `runtime.orders`.
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pplex.runtime.errors import PplexError

MAX_ID = 64  # characters
MOST_SECONDS = 86_400
SHOWN = 60  # characters of a client's value in a message


@dataclass(frozen=True)
class Order:
    """What to do, with checked values; `id` is the client's name for it, for the answer."""

    name: str
    id: str | None
    arguments: Mapping[str, Any]


class OrderError(PplexError):
    """An order that is refused: its name and its id, as far as they could be read."""

    def __init__(self, reason: str, name: str | None = None, id: str | None = None):
        super().__init__(reason)
        self.name, self.id = name, id


class _Field(NamedTuple):
    """One argument: whether a value is valid, and what it must be, in words."""

    fits: Callable[[Any], bool]
    must_be: str
    is_required: bool = False


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


_TEXT = _Field(lambda value: type(value) is str, "a text")
_FLAG = _Field(lambda value: type(value) is bool, "true or false")
_WHOLE = _Field(lambda value: type(value) is int and abs(value) <= MOST_SECONDS, "a whole number")
_SECONDS = _Field(_is_seconds, f"a number of seconds, 0 to {MOST_SECONDS}")

ORDERS: Mapping[str, Mapping[str, _Field]] = {
    "say": {"text": _TEXT._replace(is_required=True), "when": _TEXT, "interrupt": _FLAG, "gap": _WHOLE},
    "hold": {},
    "release": {},
    "rebuild": {"persona": _TEXT, "facts": _TEXT, "voice": _TEXT, "keep_seconds": _SECONDS},
    "snapshot": {},
    "rewind": {"seconds": _SECONDS._replace(is_required=True)},
}
OF_MEMORY = ("rebuild", "snapshot", "rewind")  # orders that copy or compute a conversation's memory


def parse_order(payload: bytes, voices: Container[str]) -> Order:
    """The order in a message's JSON, for a bundle's `voices`. Raises OrderError that lists all faults.

    A value of null counts as missing. A voice may only be one of the bundle's: the runtime would also read a file.
    """
    content = {name: value for name, value in _decoded(payload).items() if value is not None}
    name, given_id = content.pop("type", None), content.pop("id", None)
    own_id = given_id if type(given_id) is str and len(given_id) <= MAX_ID else None
    if type(name) is not str or name not in ORDERS:
        raise OrderError(f"type is {_shown(name)}, but must be {', '.join(ORDERS)}.", None, own_id)
    wrong = [] if given_id == own_id else [f"id must be a text of at most {MAX_ID} characters."]
    wrong += _faults(content, ORDERS[name], name)
    voice = content.get("voice")
    if type(voice) is str:
        content["voice"] = voice.removesuffix(".pt")
        if content["voice"] not in voices:
            wrong.append(f"Unknown voice {_shown(voice)}.")
    if wrong:
        raise OrderError(" ".join(wrong[:8]), name, own_id)
    return Order(name, own_id, content)


def _faults(content: Mapping[str, Any], fields: Mapping[str, _Field], name: str) -> list[str]:
    """What is wrong with the arguments of an order."""
    known = ", ".join(fields) or "nothing"
    wrong = [f"{name} takes {known}, not {_shown(other)}." for other in content if other not in fields]
    for key, field in fields.items():
        if key not in content:
            wrong += [f"{name} needs {key}, {field.must_be}."] if field.is_required else []
        elif not field.fits(content[key]):
            wrong.append(f"{key} is {_shown(content[key])}, but must be {field.must_be}.")
    return wrong


def _decoded(payload: bytes) -> dict[str, Any]:
    try:
        content = json.loads(payload.decode(), parse_constant=_no_number, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise OrderError("This JSON is nested too deeply.") from None
    except ValueError as error:  # also bytes that are not UTF-8
        raise OrderError(f"This is not JSON: {error}"[:200]) from error
    if type(content) is not dict:
        raise OrderError('An order is an object, such as {"type": "hold"}.')
    return content


def _no_number(text: str) -> None:
    raise OrderError(f"{text} is not a number in JSON.")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise OrderError(f"{_shown(repeated)} is there twice.")
    return content


def _shown(value: object) -> str:
    """A client's value for a message: printable, and at most a line."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, bool):
        return json.dumps(value)
    text = ascii(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
