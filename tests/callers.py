"""A bare client of the server's protocol, for tests that look at single messages or misbehave."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np

FRAME_S = 0.08
FRAME = 1920
PATIENCE_S = 15
KINDS = ("handshake", "audio", "text", "control", "metadata", "error", "ping")


class Caller:
    """An open connection: what arrived so far, by kind, and when."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse):
        self.ws = ws
        self.messages: list[tuple[str, bytes]] = []
        self.times: list[float] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.ws:
            assert message.type is aiohttp.WSMsgType.BINARY, message
            self.messages.append((KINDS[message.data[0]], message.data[1:]))
            self.times.append(time.monotonic())

    def all(self, kind: str) -> list[bytes]:
        return [payload for name, payload in self.messages if name == kind]

    def metadata(self, kind: str) -> list[dict[str, Any]]:
        return [content for payload in self.all("metadata") if (content := json.loads(payload))["type"] == kind]

    @property
    def session(self) -> dict[str, Any]:
        return self.metadata("session")[0]

    @property
    def text(self) -> str:
        return b"".join(self.all("text")).decode()

    def heard(self) -> np.ndarray:
        """The agent's frames [n, 1920], where they travel as f32."""
        return np.frombuffer(b"".join(self.all("audio")), "<f4").reshape(-1, FRAME)

    async def until(self, holds: Callable[[], Any], what: str = "that") -> None:
        """Wait for what messages bring."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{what} never came; there were {[kind for kind, _ in self.messages]}"
            await asyncio.sleep(0.005)

    async def handshake(self) -> "Caller":
        await self.until(lambda: self.all("handshake"), "the handshake")
        return self

    async def replies(self, count: int) -> np.ndarray:
        await self.until(lambda: len(self.all("audio")) >= count, f"{count} replies")
        return self.heard()

    async def say(self, *frames: np.ndarray) -> None:
        """Send frames [1920] float32 at once."""
        for frame in frames:
            await self.ws.send_bytes(b"\1" + frame.astype("<f4").tobytes())

    async def talk(self, frames: np.ndarray) -> np.ndarray:
        """Send frames [n, 1920] in real time; returns as many replies."""
        before, began = len(self.all("audio")), time.monotonic()
        for i, frame in enumerate(frames):
            await asyncio.sleep(max(0.0, began + i * FRAME_S - time.monotonic()))
            await self.say(frame)
        return (await self.replies(before + len(frames)))[before:]

    async def closed(self) -> int:
        """Wait for the end; its code."""
        await asyncio.wait_for(self._reader, PATIENCE_S)
        assert self.ws.close_code is not None
        return self.ws.close_code

    def drop(self) -> None:
        """Let the connection break, as a network does: no close message."""
        connection = self.ws._conn
        assert connection is not None and connection.transport is not None
        connection.transport.abort()


@asynccontextmanager
async def call(url: str, headers: dict[str, str] | None = None, **query: str) -> AsyncIterator[Caller]:
    """Connect, with raw float32 audio unless `audio` says otherwise."""
    async with aiohttp.ClientSession() as session:
        parameters = {"audio": "f32", **query}
        connecting = session.ws_connect(
            f"{url}/api/chat", params=parameters, headers=headers, max_msg_size=0, autoclose=True, ssl=False
        )
        async with connecting as ws:
            yield Caller(ws)


def run(conversation: Awaitable[Any], seconds: float = 60) -> Any:
    """The result of a test's coroutine; it fails rather than hang."""

    async def bounded() -> Any:
        return await asyncio.wait_for(conversation, seconds)

    return asyncio.run(bounded())


def speech(frames: int, seed: int = 0) -> np.ndarray:
    """Something like speech: [frames, 1920] float32."""
    generator = np.random.default_rng(seed)
    t = np.arange(frames * FRAME) / 24_000
    tone = np.sin(2 * np.pi * (150 + 40 * np.sin(3 * t) + 10 * seed) * t) * (0.6 + 0.4 * np.sin(7 * t))
    return (0.3 * tone + 0.02 * generator.normal(size=t.size)).astype(np.float32).reshape(frames, FRAME)
