"""What a user said, as an item of a Realtime conversation, for clients that ask for `transcription`. No I/O.

Called by `server.realtime_protocol`.
"""

from collections.abc import Sequence
from typing import Any

from pplex.server.openai_events import new_id
from pplex.server.realtime_items import Items
from pplex.server.realtime_responses import event
from pplex.server.user_utterances import Words


def transcript_events(items: Items, words: Sequence[Words]) -> list[str]:
    """Add an utterance's words to the items; returns the events that tell of it.

    The new item has no text yet: LiveKit would add the transcript to it a second time.
    """
    item_id, transcript = new_id("item"), "".join(each.text for each in words).strip()
    item = _item(item_id, None)
    previous = items.add(item)
    items.put(_item(item_id, transcript))
    usage = {"type": "duration", "seconds": (words[-1].end_ms - words[0].start_ms) / 1000}
    return [
        event("conversation.item.added", previous_item_id=previous, item=item),
        event("conversation.item.done", previous_item_id=previous, item=item),
        event(
            "conversation.item.input_audio_transcription.completed",
            item_id=item_id,
            content_index=0,
            transcript=transcript,
            usage=usage,
        ),
    ]


def _item(item_id: str, transcript: str | None) -> dict[str, Any]:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": transcript}],
    }
