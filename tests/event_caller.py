"""A bare client of OpenAI's protocols, for tests that check single events or misbehave."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import numpy as np
from callers import FRAME_S, PATIENCE_S


class EventCaller:
    """An open connection, and the events so far. A protocol names its event with the agent's audio, and with its words."""

    audio_event = words_event = append_event = ""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse):
        self.ws = ws
        self.events: list[dict[str, Any]] = []
        self.times: list[float] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.ws:
            assert message.type is aiohttp.WSMsgType.TEXT, message
            self.events.append(json.loads(message.data))
            self.times.append(time.monotonic())

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    @property
    def errors(self) -> list[tuple[str, str | None]]:
        """Code and param of each error."""
        return [(event["error"]["code"], event["error"]["param"]) for event in self.all("error")]

    @property
    def audio(self) -> bytes:
        """What the agent said, in the session's format."""
        return b"".join(base64.b64decode(event["delta"]) for event in self.all(self.audio_event))

    @property
    def text(self) -> str:
        return "".join(event["delta"] for event in self.all(self.words_event))

    async def send(self, kind: str, **fields: Any) -> None:
        await self.ws.send_str(json.dumps({"type": kind, **fields}))

    async def until(self, holds: Callable[[], Any], what: str = "that") -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            kinds = [event["type"] for event in self.events][-20:]
            assert time.monotonic() < end and not (self._reader.done() and not holds()), f"{what} never came: {kinds}"
            await asyncio.sleep(0.005)

    async def ask(self, kind: str, answer: str, **fields: Any) -> dict[str, Any]:
        """Send an event; returns the next event of the kind `answer`."""
        before = len(self.all(answer))
        await self.send(kind, **fields)
        await self.until(lambda: len(self.all(answer)) > before, answer)
        return self.all(answer)[before]

    async def append(self, codes: bytes) -> None:
        await self.send(self.append_event, audio=base64.b64encode(codes).decode())

    async def talk(self, chunks: list[bytes], chunk_s: float = FRAME_S) -> None:
        """Append chunks in real time."""
        began = time.monotonic()
        for i, chunk in enumerate(chunks):
            await asyncio.sleep(max(0.0, began + i * chunk_s - time.monotonic()))
            await self.append(chunk)

    async def replies(self, count: int) -> None:
        await self.until(lambda: len(self.all(self.audio_event)) >= count, f"{count} replies")

    async def closed(self) -> int:
        """Wait for the end of the connection; returns its close code."""
        await asyncio.wait_for(self._reader, PATIENCE_S)
        assert self.ws.close_code is not None
        return self.ws.close_code


Caller = TypeVar("Caller", bound=EventCaller)


@asynccontextmanager
async def connected(
    make: Callable[[aiohttp.ClientWebSocketResponse], Caller],
    address: str,
    headers: dict[str, str] | None,
    protocols: tuple[str, ...],
    query: dict[str, str],
) -> AsyncIterator[Caller]:
    """Connect. The session is not started yet."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, params=query, headers=headers, protocols=protocols, max_msg_size=1 << 20) as ws,
    ):
        yield make(ws)


def pcm16(pcm: np.ndarray) -> bytes:
    """Samples as 16-bit PCM."""
    return np.rint(pcm * 32_768).clip(-32_768, 32_767).astype("<i2").tobytes()
