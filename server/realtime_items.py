"""The items of a Realtime conversation: what clients add and delete, and what the agent has said. No I/O.

Called by `server.realtime_protocol`. The model knows only the texts of system items that came before its conversation.
"""

import json
from collections.abc import Mapping
from itertools import filterfalse
from typing import Any

from pplex.server.openai_events import MAX_ID, EventError, check_size, event, new_id, object_at, wrong
from pplex.server.openai_settings import persona_at

MAX_ITEM = 262_144  # characters of JSON: it is sent back
MAX_ITEMS = 256
MAX_KEPT = 1 << 20  # characters of JSON of all items
KEYS = ("role", "call_id", "name", "arguments", "output")
PART_KEYS = ("type", "text", "transcript", "detail")  # an image or audio is not sent back
ROLES = ("system", "developer", "user", "assistant")
OF_PERSONA = ("system", "developer")
FIRST = "root"  # a client's name for the place before all items


class Items:
    """The newest items by id, in their order. Older ones are forgotten."""

    def __init__(self) -> None:
        self._items = dict[str, Mapping[str, Any]]()
        self._order = list[str]()
        self._sizes = dict[str, int]()

    @property
    def last(self) -> str | None:
        """The id of the last item."""
        return self._order[-1] if self._order else None

    def get(self, item_id: object) -> Mapping[str, Any] | None:
        """An item, if it is known."""
        return self._items.get(item_id) if isinstance(item_id, str) else None

    def add(self, item: Mapping[str, Any], after: object = None) -> str | None:
        """Add an item behind the one with the id `after`, else at the end; returns the id of the item before it."""
        self.remove(item["id"])
        place = 0 if after == FIRST else len(self._order)
        if self.get(after) is not None:
            place = self._order.index(str(after)) + 1
        before = self._order[place - 1] if place else None
        self._order.insert(place, item["id"])
        self.put(item)
        return before

    def copy(self) -> "Items":
        """The same items, to try a change."""
        new = Items()
        new._items, new._order, new._sizes = dict(self._items), list(self._order), dict(self._sizes)
        return new

    def put(self, item: Mapping[str, Any]) -> None:
        """Change an item that has a place. One that was removed meanwhile stays so."""
        item_id = item["id"]
        if item_id not in self._order:
            return
        self._items[item_id], self._sizes[item_id] = item, len(json.dumps(item))
        while len(self._order) > MAX_ITEMS or sum(self._sizes.values()) > MAX_KEPT:
            self.remove(next(filterfalse(self._is_of_persona, self._order), self._order[0]))

    def _is_of_persona(self, item_id: str) -> bool:
        return self._items[item_id].get("role") in OF_PERSONA if item_id in self._items else False

    def remove(self, item_id: object) -> None:
        """Forget an item, if it is known."""
        if isinstance(item_id, str) and self._items.pop(item_id, None) is not None:
            self._order.remove(item_id)
            del self._sizes[item_id]

    # What clients ask of items, and the events that answer it.

    def commit(self, given: Mapping[str, Any]) -> list[str]:
        """The user's audio becomes no item: only its id is told."""
        return [event("input_audio_buffer.committed", item_id=new_id("item"), previous_item_id=self.last)]

    def delete(self, given: Mapping[str, Any]) -> list[str]:
        """Forget an item. Raises EventError if none is named."""
        item_id = _item_id(given)
        self.remove(item_id)
        return [event("conversation.item.deleted", item_id=item_id)]

    def truncate(self, given: Mapping[str, Any]) -> list[str]:
        """Acknowledge that the user heard only a part. Raises EventError if no item is named."""
        numbers = {name: given.get(name) for name in ("content_index", "audio_end_ms")}
        whole = {name: value if type(value) is int else 0 for name, value in numbers.items()}
        return [event("conversation.item.truncated", item_id=_item_id(given), **whole)]

    def retrieve(self, given: Mapping[str, Any]) -> list[str]:
        """Raises EventError for an item that is not known."""
        item = self.get(given.get("item_id"))
        if item is None:
            raise EventError("item_retrieve_invalid_item_id", "This server has no item with this id.", "item_id")
        return [event("conversation.item.retrieved", item=item)]

    # For the model.

    def persona(self) -> list[str]:
        """The texts of system items."""
        system = (self._items[each] for each in self._order if self._is_of_persona(each))
        return [text for item in system for part in item.get("content", ()) if (text := part.get("text"))]


def parse_item(given: Any) -> Mapping[str, Any]:
    """An item as it is sent back, with an id. Raises EventError."""
    fields = object_at(given, "item")
    kind = _name(fields.get("type", "message"), "item.type")
    item_id = new_id("item") if fields.get("id") is None else _name(fields["id"], "item.id")
    item: dict[str, Any] = {"id": item_id, "object": "realtime.item", "type": kind, "status": "completed"}
    item |= {key: fields[key] for key in KEYS if fields.get(key) is not None}
    if kind == "message":
        if item.get("role") not in ROLES:
            raise wrong("item.role", f"{', '.join(ROLES[:-1])} or {ROLES[-1]}")
        item["content"] = _content(fields.get("content"))
    check_size(item, MAX_ITEM, "item")
    return item


def _name(given: Any, path: str) -> str:
    if type(given) is not str or not 0 < len(given) <= MAX_ID:
        raise wrong(path, f"a string of 1 to {MAX_ID} characters")
    return given


def _content(given: Any) -> list[Mapping[str, Any]]:
    if given is None:
        return []
    if type(given) is not list or not all(type(part) is dict for part in given):
        raise wrong("item.content", "a list of objects")
    for place, part in enumerate(given):
        persona_at(part.get("text"), f"item.content[{place}].text")
    return [{key: part[key] for key in PART_KEYS if key in part} for part in given]


def _item_id(given: Mapping[str, Any]) -> str:
    return _name(given.get("item_id"), "item_id")
