"""Twilio's side of a call, for tests that check single messages or misbehave."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import numpy as np
from callers import FRAME_S, PATIENCE_S
from serving import Running

from pplex.server.g711 import MU_LAW
from pplex.server.resampling import Resampler
from pplex.server.twilio_signature import HEADER, signature_of

PATH = "/twilio"
AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
SILENCE = b"\xff"
PACKET, PACKET_MS = 160, 20  # bytes
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}


class TwilioCaller:
    """An open connection, and what the agent has said. Anything but a right `media` message fails the test."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, sid: str):
        assert ws._conn is not None and ws._conn.transport is not None
        self.ws, self.sid, self._transport = ws, sid, ws._conn.transport
        self.frames: list[bytes] = []  # mu-law
        self.times: list[float] = []
        self._sent = 0  # messages
        self._time_ms = 0  # of the stream
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.ws:
            if message.type is aiohttp.WSMsgType.PING:  # without autoping
                continue
            assert message.type is aiohttp.WSMsgType.TEXT, message
            event = json.loads(message.data)
            assert set(event) == {"event", "streamSid", "media"} and set(event["media"]) == {"payload"}, event
            assert (event["event"], event["streamSid"]) == ("media", self.sid)
            self.frames.append(base64.b64decode(event["media"]["payload"], validate=True))
            self.times.append(time.monotonic())

    @property
    def audio(self) -> bytes:
        return b"".join(self.frames)

    async def send(self, kind: str, **fields: Any) -> None:
        self._sent += 1
        await self.ws.send_str(json.dumps({"event": kind, "sequenceNumber": str(self._sent), **fields}))

    async def start(self, parameters: dict[str, Any] | None = None, **other: Any) -> None:
        """Send `connected` and `start`; `other` replaces fields of the start."""
        await self.ws.send_str(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        fields = {
            "accountSid": "AC1",
            "callSid": "CA1",
            "streamSid": self.sid,
            "tracks": ["inbound"],
            "mediaFormat": FORMAT,
            "customParameters": parameters or {},
        }
        await self.send("start", streamSid=self.sid, start={**fields, **other})

    async def media(self, codes: bytes) -> None:
        """Send a packet of the caller's voice."""
        content = {
            "track": "inbound",
            "chunk": str(self._sent),
            "timestamp": str(self._time_ms),
            "payload": base64.b64encode(codes).decode(),
        }
        self._time_ms += len(codes) * PACKET_MS // PACKET
        await self.send("media", streamSid=self.sid, media=content)

    def lose(self, packets: int) -> None:
        """Let packets be lost before they reach Twilio."""
        self._time_ms += packets * PACKET_MS

    async def talk(self, codes: bytes, lost: range = range(0)) -> None:
        """Send packets in real time. `lost`: those that never reach Twilio."""
        began = time.monotonic()
        for number, at in enumerate(range(0, len(codes), PACKET)):
            await asyncio.sleep(max(0.0, began + number * PACKET_MS / 1000 - time.monotonic()))
            if number in lost:
                self.lose(1)
            else:
                await self.media(codes[at : at + PACKET])

    async def stop(self) -> None:
        await self.send("stop", streamSid=self.sid, stop={"accountSid": "AC1", "callSid": "CA1"})

    async def until(self, holds: Callable[[], Any], what: str = "that") -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{what} never came; there were {len(self.frames)} frames"
            assert not self._reader.done() or holds(), f"closed with {self.ws.close_code} before {what}"
            await asyncio.sleep(0.005)

    async def replies(self, count: int) -> None:
        await self.until(lambda: len(self.frames) >= count, f"{count} frames")

    async def closed(self) -> int:
        """Wait for the end of the connection; returns its close code."""
        await asyncio.wait_for(self._reader, PATIENCE_S)
        assert self.ws.close_code is not None
        return self.ws.close_code

    def drop(self) -> None:
        """Break the connection without a close message."""
        self._transport.abort()


@asynccontextmanager
async def phone(
    url: str,
    auth_token: str | None = None,
    headers: dict[str, str] | None = None,
    answers_pings: bool = True,
    session: aiohttp.ClientSession | None = None,
) -> AsyncIterator[TwilioCaller]:
    """Connect as Twilio does; the call has not begun. With an auth token the request is signed."""
    headers = dict(headers or {})
    if auth_token is not None:
        headers[HEADER] = signature_of(f"wss://{url.partition('://')[2]}{PATH}", auth_token).decode()
    async with (
        session or aiohttp.ClientSession() as dialling,
        dialling.ws_connect(f"{url}{PATH}", headers=headers, autoping=answers_pings, max_msg_size=1 << 20) as ws,
    ):
        caller = TwilioCaller(ws, f"MZ{id(ws):032x}")
        yield caller
    caller.drop()  # TLS may still be closing


def mu_law(pcm: np.ndarray) -> bytes:
    """Samples at 24 kHz as a telephone sends them."""
    return MU_LAW.encode(Resampler(24_000, 8_000).process(np.ravel(pcm)))


def frames_of(codes: bytes) -> int:
    """How many frames the agent answers."""
    return round(len(codes) / 8000 / FRAME_S)


async def attempt(url: str, parameters: dict[str, str], **connect: Any) -> int:
    """200 for a call, else the HTTP status or the close code of the refusal."""
    try:
        async with phone(url, **connect) as caller:
            await caller.start(parameters)
            await caller.media(SILENCE * 640)
            with suppress(AssertionError):
                await caller.replies(1)
                return 200
            return await caller.closed()
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status


def is_free(server: Running) -> bool:
    state = server.state()
    return state["used"] == state["queued"] == 0
