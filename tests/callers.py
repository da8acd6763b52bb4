"""A bare client of the server's protocol, for tests that check single messages or misbehave."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
from serving import Running

FRAME_S = 0.08
FRAME = 1920
PATIENCE_S = 15
KINDS = ("handshake", "audio", "text", "control", "metadata", "error", "ping")


class Caller:
    """An open connection: the messages so far, by kind, and their times."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse):
        assert ws._conn is not None and ws._conn.transport is not None
        self.ws, self._transport = ws, ws._conn.transport
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
        """The agent's frames [n, 1920], if the connection uses f32."""
        return np.frombuffer(b"".join(self.all("audio")), "<f4").reshape(-1, FRAME)

    async def until(self, holds: Callable[[], Any], what: str = "that") -> None:
        """Wait until messages make `holds()` true."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{what} never came; there were {[kind for kind, _ in self.messages]}"
            await asyncio.sleep(0.005)

    async def handshake(self) -> "Caller":
        await self.until(lambda: self.metadata("session"), "the handshake, and the facts after it")
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
        """Wait for the end of the connection; returns its close code."""
        await asyncio.wait_for(self._reader, PATIENCE_S)
        assert self.ws.close_code is not None
        return self.ws.close_code

    def drop(self) -> None:
        """Break the connection without a close message, as a network does."""
        self._transport.abort()


@asynccontextmanager
async def call(url: str, headers: dict[str, str] | None = None, **query: str) -> AsyncIterator[Caller]:
    """Connect, with raw float32 audio unless `audio` says otherwise."""
    async with aiohttp.ClientSession() as session:
        parameters = {"audio": "f32", "early_metadata": "1", **query}
        connecting = session.ws_connect(
            f"{url}/api/chat", params=parameters, headers=headers, max_msg_size=0, autoclose=True, ssl=False
        )
        async with connecting as ws:
            caller = Caller(ws)
            yield caller
        caller.drop()  # TLS may still be closing, or sent data may wait for a closed server


def run(conversation: Awaitable[Any], seconds: float = 60) -> Any:
    """The result of a test's coroutine; a timeout makes it fail instead of hang."""

    async def bounded() -> Any:
        return await asyncio.wait_for(conversation, seconds)

    return asyncio.run(bounded())


def speech(frames: int, seed: int = 0) -> np.ndarray:
    """A sound similar to speech: [frames, 1920] float32."""
    generator = np.random.default_rng(seed)
    t = np.arange(frames * FRAME) / 24_000
    tone = np.sin(2 * np.pi * (150 + 40 * np.sin(3 * t) + 10 * seed) * t) * (0.6 + 0.4 * np.sin(7 * t))
    return (0.3 * tone + 0.02 * generator.normal(size=t.size)).astype(np.float32).reshape(frames, FRAME)


# Raw bytes, for clients that do what no WebSocket library does.


def upgrade(port: int, query: str = "audio=f32", path: str = "/api/chat") -> bytes:
    """The HTTP request that opens a WebSocket."""
    return (
        f"GET {path}?{query} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = 2, fin: bool = True, masked: bool = True) -> bytes:
    """A WebSocket frame from a client, with a mask of zeros."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    head = bytes([opcode | (0x80 if fin else 0), length[0] | (0x80 if masked else 0)]) + length[1:]
    return head + (bytes(4) if masked else b"") + payload


@asynccontextmanager
async def dial(
    port: int,
    query: str = "audio=f32",
    then: bytes = b"",
    receive_buffer: int | None = None,
    path: str = "/api/chat",
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the upgrade request and `then` in one packet; the server's answer has been read."""
    plug = socket.socket()
    if receive_buffer is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plug.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plug, limit=receive_buffer or 1 << 16)
    try:
        writer.write(upgrade(port, query, path) + then)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert b" 101 " in head, head
        yield reader, writer
    finally:
        writer.transport.abort()


async def listen(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The server's next frame: opcode and payload."""
    first, second = await asyncio.wait_for(reader.readexactly(2), PATIENCE_S)
    size = second & 127
    if size > 125:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
    return first & 15, await asyncio.wait_for(reader.readexactly(size), PATIENCE_S)


Answer = tuple[int, str, dict[str, Any]]


def ask(running: Running, path: str, headers: dict[str, str] | None = None, **options: Any) -> Answer:
    """Status, body and headers of one request, without stored cookies."""

    async def request() -> Answer:
        async with aiohttp.ClientSession() as session:
            method = options.pop("method", "GET")
            sent = session.request(method, running.url + path, headers=headers, allow_redirects=False, **options)
            async with sent as answer:
                return answer.status, await answer.text(), {**answer.headers}

    return run(request())


def raw(running: Running, request: bytes) -> bytes:
    """The beginning of the server's answer to these bytes."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as plug:
        plug.sendall(request)
        return plug.recv(65536)
