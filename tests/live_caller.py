"""A bare client of GPT-Live, for tests that check single events or misbehave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from event_caller import EventCaller, connected
from event_caller import pcm16 as pcm16

PATH = "/v1/live/sessions"


class LiveCaller(EventCaller):
    """See `EventCaller`."""

    audio_event = "session.output_audio.delta"
    words_event = "session.output_transcript.delta"
    append_event = "session.input_audio.append"

    async def start(self, **session: Any) -> dict[str, Any]:
        """Start a session; returns it as resolved."""
        event = await self.ask("session.start", "session.started", session={"model": "gpt-live-1", **session})
        return event["session"]


@asynccontextmanager
async def live(
    url: str, headers: dict[str, str] | None = None, protocols: tuple[str, ...] = (), **query: str
) -> AsyncIterator[LiveCaller]:
    """Connect. The session is not started yet."""
    async with connected(LiveCaller, f"{url}{PATH}", headers, protocols, query) as caller:
        yield caller
