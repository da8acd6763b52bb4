"""A bare client of the Realtime API, for tests that check single events or misbehave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from event_caller import EventCaller, connected

PATH = "/v1/realtime"


class RealtimeCaller(EventCaller):
    """See `EventCaller`."""

    audio_event = "response.output_audio.delta"
    words_event = "response.output_audio_transcript.delta"
    append_event = "input_audio_buffer.append"

    async def update(self, **session: Any) -> dict[str, Any]:
        """Change the session; returns it as resolved."""
        event = await self.ask("session.update", "session.updated", session={"type": "realtime", **session})
        return event["session"]

    async def respond(self, **response: Any) -> dict[str, Any]:
        """Ask for a response, which starts the conversation, too; returns the response."""
        return (await self.ask("response.create", "response.created", response=response))["response"]


@asynccontextmanager
async def realtime(
    url: str, headers: dict[str, str] | None = None, protocols: tuple[str, ...] = (), **query: str
) -> AsyncIterator[RealtimeCaller]:
    """Connect, and wait for `session.created`."""
    async with connected(RealtimeCaller, f"{url}{PATH}", headers, protocols, query) as caller:
        await caller.until(lambda: caller.all("session.created"), "session.created")
        yield caller
