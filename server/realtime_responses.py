"""The agent's utterances as responses of the Realtime API: their events, in the order that clients rely on. No I/O.

Called by `server.realtime_protocol`.
"""

import json
from collections.abc import Mapping
from typing import Any

from pplex.server.openai_events import event, new_event_id, new_id
from pplex.server.realtime_items import Items

PLACE = {"output_index": 0, "content_index": 0}


class Response:
    """One response, from `response.created` to `response.done`. metadata: the client's."""

    def __init__(self, items: Items, metadata: Any = None):
        self.id, self._item_id = new_id("resp"), new_id("item")
        self._items, self._metadata = items, metadata
        self._transcript = ""
        self._previous: str | None = None
        ids = {"response_id": self.id, "item_id": self._item_id, **PLACE}
        self._ids = ids
        self._audio_event = json.dumps({"type": "response.output_audio.delta", **ids})[:-1]

    def opening(self) -> list[str]:
        """The events that open it."""
        item = self._item("in_progress", [])
        self._previous = self._items.add(item)
        return [
            event("response.created", response=self._response("in_progress", [])),
            event("response.output_item.added", response_id=self.id, output_index=0, item=item),
            event("conversation.item.added", previous_item_id=self._previous, item=item),
            event("response.content_part.added", **self._ids, part={"type": "audio", "transcript": ""}),
        ]

    def frame(self, audio: str, text: str) -> list[str]:
        """A frame's text, and its audio in base64."""
        delta = text if self._transcript else text.lstrip()
        self._transcript += delta
        words = [event("response.output_audio_transcript.delta", **self._ids, delta=delta)] if delta else []
        return [*words, f'{self._audio_event}, "event_id": "{new_event_id()}", "delta": "{audio}"}}']

    def closing(self, is_empty: bool, status: str = "completed", details: Mapping[str, Any] | None = None) -> list[str]:
        """The events that close it. is_empty: the agent said nothing. details: of a status that is not completed."""
        content = [] if is_empty else [{"type": "output_audio", "transcript": self._transcript}]
        item = self._item("completed" if status == "completed" else "incomplete", content)
        self._items.put(item)
        output = [] if is_empty else [item]
        return [*self._item_done(item), event("response.done", response=self._response(status, output, details))]

    def _item_done(self, item: Mapping[str, Any]) -> list[str]:
        part = {"type": "audio", "transcript": self._transcript}
        return [
            event("response.output_audio.done", **self._ids),
            event("response.output_audio_transcript.done", **self._ids, transcript=self._transcript),
            event("response.content_part.done", **self._ids, part=part),
            event("response.output_item.done", response_id=self.id, output_index=0, item=item),
            event("conversation.item.done", previous_item_id=self._previous, item=item),
        ]

    def _item(self, status: str, content: list[dict[str, str]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "object": "realtime.item",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(
        self, status: str, output: list[dict[str, Any]], details: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": output,
            "output_modalities": ["audio"],
            "metadata": self._metadata,
            "usage": None,
        }
