"""A client of the server: `connect` opens a conversation. Send samples to it, and iterate over the agent's answers.

Called by programs (docs/protocol.md, "From Python") and by the tests of the server.
"""

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import frames
from pplex.runtime.errors import AudioError, PplexError
from pplex.runtime.samples import check_samples
from pplex.server.chat_messages import Kind
from pplex.server.client_link import (
    ClosedError,
    Link,
    LostError,
    OnQueued,
    RefusedError,
    ServerError,
    UnreachableError,
)

__all__ = [
    "Audio",
    "AudioFormat",
    "ClosedError",
    "Conversation",
    "Dropped",
    "Event",
    "LostError",
    "Queued",
    "RefusedError",
    "ServerError",
    "Text",
    "UnreachableError",
    "connect",
]

AudioFormat = Literal["opus", "s16", "f32"]

MAX_SAMPLES = 12_000  # in one message: 48 kB of f32; the server accepts 64 KiB
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 4.0  # between attempts to reconnect


@dataclass(frozen=True, eq=False)
class Audio:
    """The agent's audio of one frame, 80 ms."""

    pcm: Pcm  # [1920] at 24 kHz


@dataclass(frozen=True)
class Text:
    """A piece of what the agent says; words start with a space."""

    text: str


@dataclass(frozen=True)
class Dropped:
    """The server could not keep up: the number of our frames that it dropped since the conversation began."""

    frames: int


@dataclass(frozen=True)
class Queued:
    """The position in the queue for a slot: 1 is next, 0 has a slot. Comes when a conversation is resumed."""

    position: int


Event = Audio | Text | Dropped | Queued


@asynccontextmanager
async def connect(
    url: str,
    *,
    voice: str | None = None,
    persona: str | None = None,
    seed: int | None = None,
    text_temperature: float | None = None,
    audio_temperature: float | None = None,
    text_topk: int | None = None,
    audio_topk: int | None = None,
    audio: AudioFormat = "f32",
    resume: str | None = None,
    reconnect: bool = False,
    on_queued: OnQueued | None = None,
    token: str | None = None,
    ssl: SSLContext | bool = True,
) -> "AsyncIterator[Conversation]":
    """Open a conversation, wait until it listens, and end it at the end of the block.

    url: the server's address, http(s) or ws(s). voice: "none" for no voice. Settings of None are the server's defaults.
    audio: the format on the wire. "opus" takes less than a tenth of the bytes of "f32" and needs PyAV.
    resume: the key of a conversation whose connection was lost; it keeps its voice, persona and sampling.
    reconnect: connect again after a lost connection, while the conversation is iterated.
    on_queued: called with the position in the queue, whenever it changes before the client has a slot.
    ssl: a context with the certificate to trust, or False to trust any.

    Raises UnreachableError, RefusedError, ClosedError, LostError: all of them are ServerError.
    """
    if audio not in get_args(AudioFormat):
        raise AudioError(f"audio must be one of {', '.join(get_args(AudioFormat))}, not {audio!r}.")
    settings = {
        "voice_prompt": voice,
        "text_prompt": persona,
        "seed": seed,
        "text_temperature": text_temperature,
        "audio_temperature": audio_temperature,
        "text_topk": text_topk,
        "audio_topk": audio_topk,
    }
    given = {name: str(value) for name, value in settings.items() if value is not None}
    if resume and given:
        raise PplexError(f"A resumed conversation keeps its settings: leave out {', '.join(given)}.")

    async def open_link(key: str | None) -> Link:
        query = {"resume": key} if key else given
        return await Link.open(url, {**query, "audio": audio}, token, ssl)

    conversation = Conversation(open_link, reconnect)
    await conversation.begin(resume, on_queued)
    try:
        yield conversation
    finally:
        await conversation.close()


class Codec(Protocol):
    """Converts samples to payloads of audio messages and back, for one connection."""

    def encode(self, pcm: Pcm) -> Iterable[bytes]: ...

    def decode(self, payload: bytes) -> Iterable[Pcm]:
        """Whole frames [1920]."""


class RawCodec:
    """`s16` and `f32`."""

    def __init__(self, audio: str, frame_size: int):
        self._dtype: np.dtype[Any] = np.dtype("<i2" if audio == "s16" else "<f4")
        self._scale = 32768 if audio == "s16" else 1
        self._frame_size = frame_size

    def encode(self, pcm: Pcm) -> Iterable[bytes]:
        if self._dtype.kind == "i":
            pcm = np.clip(np.rint(pcm * self._scale), -self._scale, self._scale - 1)
        for start in range(0, len(pcm), MAX_SAMPLES):
            yield pcm[start : start + MAX_SAMPLES].astype(self._dtype).tobytes()

    def decode(self, payload: bytes) -> Iterable[Pcm]:
        pcm = np.frombuffer(payload, self._dtype).astype(np.float32) / self._scale
        return list(pcm.reshape(-1, self._frame_size))


def make_codec(audio: str, frame_size: int) -> Codec:
    if audio != "opus":
        return RawCodec(audio, frame_size)
    from pplex.server.client_opus import OpusCodec  # here, because it imports PyAV

    return OpusCodec(frame_size)


class Conversation:
    """A conversation that listens: `send` the user's samples, and iterate over the agent's answers.

    Do both at once, in two tasks: the server disconnects a client that stops reading. The iteration ends after `close`. It
    raises ClosedError if the server ended the conversation. If the connection is lost and `reconnect` is off, it raises
    LostError; if reconnecting fails, it raises the last attempt's error.

    Its facts: `id`, `resume` (the key to continue after a loss, or None), `resume_seconds` (how long the key is valid),
    `resumed`, `voice` (or None), `seed`, `audio`, `sample_rate`, `frame_size`, `ignored` (settings without effect).
    """

    def __init__(self, open_link: Callable[[str | None], Awaitable[Link]], reconnect: bool):
        self._open_link, self._reconnect = open_link, reconnect
        self._events: deque[Event] = deque()
        self._closing = False
        self._dropped = 0  # frames, as last reported
        self._end: ServerError | None = None
        self.reconnected = 0  # how often a new connection has resumed it

    async def begin(self, resume: str | None, on_queued: OnQueued | None) -> None:
        """Connect. Called by `connect`, and again after each lost connection."""
        link = await self._open_link(resume)
        try:
            facts = await link.handshake(on_queued)
        except BaseException:
            await link.abandon()
            raise
        self._link: Link = link
        self.id, self.voice, self.seed, self.ignored = facts.id, facts.voice, facts.seed, facts.ignored
        self.resume, self.resume_seconds, self.resumed = facts.resume, facts.resume_seconds, facts.resumed
        self.audio, self.sample_rate, self.frame_size = facts.audio, facts.sample_rate, facts.frame_size
        self._codec = make_codec(facts.audio, facts.frame_size)

    async def send(self, pcm: npt.NDArray[np.floating]) -> None:
        """Send what the user says: [samples] float at 24 kHz, of any length. The agent answers each complete frame.

        Samples sent while the connection is lost are dropped, because they would come too late. The iteration then
        reconnects or raises LostError. Raises AudioError for invalid samples, and the error that ended the conversation.
        """
        if not isinstance(pcm, np.ndarray) or pcm.dtype.kind != "f" or pcm.ndim != 1:
            raise AudioError("Send a numpy array of float samples, [samples], mono at 24 kHz.")
        check_samples(pcm, "The audio")
        if self._end:
            raise self._end
        try:
            for payload in self._codec.encode(pcm.astype(np.float32, copy=False)):
                await self._link.send_audio(payload)
        except LostError:
            return

    async def play(self, pcm: Pcm) -> AsyncIterator[Event]:
        """Play a recording [samples] in real time, and yield what the agent says during it.

        Ends when the last frame is answered or dropped. An incomplete last frame is filled up with silence. Raises the
        errors of `send` and of the iteration.
        """
        recording = frames(pcm, self.frame_size)  # [F, frame_size]
        speaking = asyncio.create_task(self._speak(recording))
        left, dropped = len(recording), self._dropped
        try:
            while left - (self._dropped - dropped) > 0:
                event = await anext(self)
                left -= isinstance(event, Audio)
                yield event
            await speaking
        finally:
            speaking.cancel()

    async def _speak(self, recording: Pcm) -> None:
        began = time.monotonic()
        for number, frame in enumerate(recording):
            await asyncio.sleep(began + number * self.frame_size / self.sample_rate - time.monotonic())
            await self.send(frame)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closing:
                raise StopAsyncIteration
            if self._end:
                raise self._end
            try:
                self._take(*await self._link.receive())
            except LostError as error:
                if self._closing:
                    raise StopAsyncIteration from None
                await self._resume_after(error)
            except ClosedError as error:
                self._end = error
                raise
        return self._events.popleft()

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == Kind.AUDIO:
            self._events.extend(Audio(frame) for frame in self._codec.decode(payload))
        elif kind == Kind.TEXT:
            self._events.append(Text(payload.decode()))
        elif kind == Kind.METADATA:
            metadata = json.loads(payload)
            if metadata.get("type") == "dropped":
                self._dropped = metadata["frames"]
                self._events.append(Dropped(self._dropped))

    async def _resume_after(self, loss: LostError) -> None:
        """Try to reconnect until it works, or until `resume_seconds` are over."""
        await self._link.abandon()
        if not self._reconnect or self.resume is None:
            self._end = loss
            raise loss
        deadline, wait_s = time.monotonic() + self.resume_seconds, FIRST_WAIT_S
        while not self._closing:
            try:
                await self.begin(self.resume, lambda position: self._events.append(Queued(position)))
                self.reconnected += 1
                return
            except ServerError as error:
                pause_s = max(wait_s * random.uniform(0.5, 1), getattr(error, "retry_after_s", None) or 0)
                final = isinstance(error, ClosedError) or getattr(error, "status", 503) != 503
                if final or time.monotonic() + pause_s > deadline:
                    self._end = error
                    raise error from loss
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def close(self) -> None:
        """End the conversation, here and on the server."""
        self._closing = True
        await self._link.close()

    async def leave(self) -> None:
        """Cut the connection but keep the conversation: resume it with connect(url, resume=key)."""
        self._closing = True
        await self._link.abandon()
