"""A client of the server: `connect` opens a conversation. Send samples to it, and iterate over the agent's answers.

Called by programs (docs/protocol.md, "From Python") and by the tests of the server.
"""

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import frames
from pplex.runtime.errors import AudioError, PplexError
from pplex.runtime.samples import check_samples
from pplex.server.chat_messages import Kind
from pplex.server.chat_request import CONTROL
from pplex.server.client_codec import make_codec
from pplex.server.client_line import ClosedError, LostError, RefusedError, ServerError, UnreachableError
from pplex.server.client_link import Link, OnQueued
from pplex.server.client_orders import OrderedText, Orders, RefusedOrderError, Said, SavedSnapshot

__all__ = [
    "Audio",
    "AudioFormat",
    "ClosedError",
    "Conversation",
    "Dropped",
    "Event",
    "LostError",
    "OrderedText",
    "Queued",
    "RefusedError",
    "RefusedOrderError",
    "Said",
    "SavedSnapshot",
    "ServerError",
    "Text",
    "UnreachableError",
    "connect",
]

AudioFormat = Literal["opus", "s16", "f32"]

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


Event = Audio | Text | Dropped | Queued | Said


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
    greeting: str | None = None,
    control: bool = False,
    snapshot: str | None = None,
    resume: str | None = None,
    reconnect: bool = False,
    on_queued: OnQueued | None = None,
    token: str | None = None,
    ssl: SSLContext | bool = True,
) -> "AsyncIterator[Conversation]":
    """Open a conversation, wait until it listens, and end it at the end of the block.

    url: the server's address, http(s) or ws(s). voice: "none" for no voice. Settings of None are the server's defaults.
    audio: the format on the wire. "opus" takes less than a tenth of the bytes of "f32" and needs PyAV.
    greeting: what the agent says first. control: the client may send orders (`say`, `hold`, ...); these three need the
    server's permission. snapshot: the key of a snapshot to continue.
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
        "greeting": greeting,
    }
    given = {name: str(value) for name, value in settings.items() if value is not None}
    if (resume or snapshot) and given:
        continued = "A resumed conversation keeps" if resume else "A snapshot has"
        raise PplexError(f"{continued} its settings: leave out {', '.join(given)}.")
    if resume and snapshot:
        raise PplexError("Resume a conversation or continue a snapshot: leave out one of them.")
    given |= {"snapshot": snapshot} if snapshot else {}

    async def open_link(key: str | None) -> Link:
        query = {"resume": key} if key else given
        asked = {CONTROL: "1"} if control else {}
        return await Link.open(url, {**query, **asked, "audio": audio}, token, ssl)

    conversation = Conversation(open_link, reconnect, control)
    await conversation.begin(resume, on_queued)
    try:
        yield conversation
    finally:
        await conversation.close()


class Conversation(Orders):
    """A conversation that listens: `send` the user's samples, and iterate over the agent's answers.

    Do both at once, in two tasks: the server disconnects a client that stops reading. The iteration ends after `close`. It
    raises ClosedError if the server ended the conversation. If the connection is lost and `reconnect` is off, it raises
    LostError; if reconnecting fails, it raises the last attempt's error.

    Its facts: `id`, `resume` (the key to continue after a loss, or None), `resume_seconds` (how long the key is valid),
    `resumed`, `voice` (or None), `seed`, `audio`, `sample_rate`, `frame_size`, `ignored` (settings without effect), `frame`
    (with control: the number of the next reply when it connected).
    """

    def __init__(self, open_link: Callable[[str | None], Awaitable[Link]], reconnect: bool, controls: bool = False):
        super().__init__()
        self._open_link, self._reconnect, self._controls = open_link, reconnect, controls
        self._reading = asyncio.Lock()  # one task reads at a time: it iterates, or waits for the answer to an order
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
        self.frame = facts.frame
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
        await self._read_until(lambda: bool(self._events or self._closing))
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    async def _read_until(self, is_done: Callable[[], bool]) -> None:
        """Take messages until `is_done()`. Raises the error that ended the conversation."""
        while not is_done():
            if self._end:
                raise self._end
            async with self._reading:
                if not is_done() and not self._end:
                    await self._read_one()

    async def _read_one(self) -> None:
        try:
            self._take(*await self._link.receive())
        except LostError as error:
            self._give_up(error)
            if not self._closing:
                await self._resume_after(error)
        except ClosedError as error:
            self._give_up(error)
            self._end = error
            raise

    async def _send_order(self, content: Mapping[str, Any]) -> None:
        if self._end:
            raise self._end
        await self._link.send_metadata(content)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == Kind.AUDIO:
            self._events.extend(Audio(frame) for frame in self._codec.decode(payload))
        elif kind == Kind.TEXT:
            self._events.append(Text(payload.decode()))
        elif kind == Kind.METADATA:
            metadata = json.loads(payload)
            match metadata.get("type"):
                case "dropped":
                    self._dropped = metadata["frames"]
                    self._events.append(Dropped(self._dropped))
                case "said":
                    said = (metadata[name] for name in ("id", "state", "words", "frame"))
                    self._events.append(Said(*said))
                case "done" | "refused":
                    self._answered(metadata)

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
