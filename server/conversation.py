"""A conversation on the event loop: from a slot to its end, over one connection or, when that is lost, the next."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pplex.runtime.errors import PplexError
from pplex.server.admission import Ticket
from pplex.server.connection import Connection, Parted, Parting
from pplex.server.engine import EngineThread, Seat, Spoken, now_s
from pplex.server.inbox import Inbox
from pplex.server.limits import Limits
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.opus import Received
from pplex.server.protocol import FRAME_S, Close, Kind, ProtocolError, pack
from pplex.server.recording import Recording
from pplex.server.request import ChatRequest, session_facts
from pplex.server.worker import Worker

WATCH_S = 0.25  # between looks at the clock


@dataclass(frozen=True)
class Studio:
    """What all conversations of a server share. `recordings`: a folder for both sides of each, None for none."""

    engine: EngineThread
    hearing: Worker
    speech: Worker
    limits: Limits
    metrics: Metrics
    frame_size: int
    recordings: Path | None


class Conversation:
    """What stays when a connection is lost: the slot, what was said, and the key to return with."""

    def __init__(self, studio: Studio, request: ChatRequest, ticket: Ticket, ended: Callable[["Conversation"], None]):
        """`ended` is called when it is over, once."""
        self.id, self.key = secrets.token_hex(6), secrets.token_urlsafe(24)
        self.connection: Connection | None = None
        self._studio, self._limits, self._metrics = studio, studio.limits, studio.metrics
        self._request, self._ticket, self._ended = request, ticket, ended
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(studio.frame_size, studio.limits.backlog_frames)
        self._seat = Seat(self._inbox, request, self._on_primed, self._answer)
        self._primed: asyncio.Future[PplexError | None] = self._loop.create_future()
        self._recording: Recording | None = None
        self._admitted_s = self._began_s = now_s()
        self._forgotten: asyncio.TimerHandle | None = None  # while a client may return
        self._dropped = 0  # frames, as told and counted
        self._is_begun = self._is_over = False

    @property
    def is_begun(self) -> bool:
        """Whether its client was told that it is listened to."""
        return self._is_begun

    def dismiss(self, parting: Parting) -> None:
        """End it from outside: by its connection, where it has one."""
        if self.connection is not None:
            self.connection.part(parting)
        else:
            self.end(parting.cause)

    # Over a connection.

    async def run(self, connection: Connection) -> Parting:
        """Converse until the connection parts; afterwards it is over, or waits for the client to return."""
        if self._is_over:  # while the connection was made
            return Parting(Close.GOING_AWAY, "The conversation is over.", "over")
        self._inbox.clear()  # before the speech thread can see the new connection: no reply to the old one's frames is its
        previous, self.connection = self.connection, connection
        if previous is not None:
            previous.part(Parting(Close.RESUMED_ELSEWHERE, "Resumed by another connection.", "resumed"))
        if self._forgotten is not None:
            self._remember(self._forgotten)
        hear = partial(self._hear, self._inbox.epoch)
        tasks = [
            asyncio.create_task(_guarded(work, connection))
            for work in (connection.read(self._room, hear), connection.write(), self._talk(connection))
        ]
        try:
            return await connection.parted
        finally:  # also where the server gives up on its handlers
            if self.connection is connection:
                self._leave(connection)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self, connection: Connection) -> None:
        """The connection has parted: wait for its client to return, if it may, or end."""
        self.connection = None
        parting = connection.parted.result() if not connection.parted.cancelled() and connection.parted.done() else None
        if parting is None or not parting.resumable or not self._is_begun or not self._limits.resume_s:
            return self.end(parting.cause if parting else "cancelled")
        self._inbox.clear()
        self._forgotten = self._loop.call_later(self._limits.resume_s, self.end, "forgotten")
        self._metrics.slots_kept.inc()
        LOGGER.info("connection lost", extra={"conversation": self.id, "cause": parting.cause})

    def _remember(self, forgotten: asyncio.TimerHandle) -> None:
        forgotten.cancel()
        self._forgotten = None
        self._metrics.slots_kept.dec()

    def end(self, cause: str) -> None:
        """Free the slot. Ending it again does nothing."""
        if self._is_over:
            return
        self._is_over = True
        if self._forgotten is not None:
            self._remember(self._forgotten)
        self._count_dropped()
        self._studio.engine.close(self._seat)
        self._ticket.release()
        if self._recording is not None:
            self._studio.speech.put(self._recording.close)
        self._ended(self)
        seconds = round(now_s() - self._admitted_s, 3)
        facts = {"conversation": self.id, "cause": cause, "seconds": seconds, "dropped_frames": self._inbox.dropped}
        LOGGER.info("conversation ended", extra=facts)

    # Its course.

    async def _talk(self, connection: Connection) -> None:
        """The handshake goes out on a beat of 80 ms that all share: whoever speaks from then on has its frames whole when
        the others have theirs, so that one call steps them all and nobody waits for a call that has just begun.
        """
        resumed = self._is_begun
        if not resumed:
            await self._wait_for_slot(connection)
            await self._prime()
            self._began_s = now_s()  # what it waited for is no part of how long it may last
        await connection.client_can_hear()
        await asyncio.sleep(-now_s() % FRAME_S)
        connection.post_handshake()
        self._tell_session(connection, resumed)
        self._inbox.start()
        self._studio.engine.wake()
        self._is_begun, connection.heard_s = True, now_s()
        (self._metrics.resumed if resumed else self._metrics.conversations).inc()
        LOGGER.info("conversation resumed" if resumed else "conversation begun", extra={"conversation": self.id})
        await self._watch(connection)

    async def _wait_for_slot(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._limits.queue_s):
                while not self._ticket.granted:
                    self._ticket.moved.clear()
                    self._tell_position(connection)
                    await self._ticket.moved.wait()
                    if self._ticket.granted:
                        self._tell_position(connection)
        except TimeoutError:
            reason = f"No slot became free in {self._limits.queue_s:g} s. Try again later."
            raise Parted(Parting(Close.TRY_LATER, reason, "queue")) from None

    def _tell_position(self, connection: Connection) -> None:
        """Clients of the reference's protocol take the handshake for the first message, and only wait."""
        if connection.request.early_metadata:
            connection.tell(type="queued", position=self._ticket.position)

    async def _prime(self) -> None:
        began = now_s()
        if self._studio.recordings is not None:
            self._recording = Recording(self._studio.recordings, self.id)
        self._studio.engine.open(self._seat)
        error = await self._primed
        if error is not None:
            raise error
        self._metrics.priming_seconds.observe(now_s() - began)

    def _tell_session(self, connection: Connection, resumed: bool) -> None:
        resume_s = self._limits.resume_s
        facts = session_facts(self._request, self.id, self._studio.frame_size)
        facts |= {"audio": connection.request.audio, "resumed": resumed}
        connection.tell(**facts, resume=self.key if resume_s else None, resume_seconds=resume_s)

    async def _watch(self, connection: Connection) -> None:
        """Tell of dropped frames, and end a conversation that is idle or has lasted long enough."""
        limits = self._limits
        while True:
            await asyncio.sleep(WATCH_S)
            if self._count_dropped():
                connection.tell(type="dropped", frames=self._dropped)
            if now_s() - connection.heard_s > limits.idle_s:
                raise Parted(Parting(Close.POLICY, f"No audio for {limits.idle_s:g} s.", "idle"))
            if now_s() - self._began_s > limits.duration_s:
                reason = f"A conversation may last {limits.duration_s:g} s."
                raise Parted(Parting(Close.POLICY, reason, "duration"))

    def _count_dropped(self) -> int:
        """Frames dropped since it was asked last."""
        dropped = self._inbox.dropped - self._dropped
        self._dropped += dropped
        self._metrics.dropped_frames.labels("backlog").inc(dropped)
        return dropped

    # What is heard and said.

    def _room(self) -> int:
        return self._inbox.room() if self._ticket.granted else 0

    def _hear(self, epoch: int, received: Received, arrived_s: float) -> None:
        """In the hearing thread."""
        if not self._ticket.granted:
            return  # said to nobody: what waits in the queue is not a conversation yet
        self._inbox.skip(received.skipped)
        if self._inbox.push(received.pcm, arrived_s, epoch):
            self._studio.engine.wake()

    def _on_primed(self, error: PplexError | None) -> None:
        def tell() -> None:
            if not self._primed.done():
                self._primed.set_result(error)

        self._loop.call_soon_threadsafe(tell)

    def _answer(self, spoken: Spoken) -> None:
        """In the speech thread: a reply to messages, which the event loop sends."""
        connection = self.connection
        if self._is_over:
            return
        if self._recording is not None:
            self._recording.write(spoken.frame.pcm, spoken.reply.pcm)
        if connection is None or spoken.frame.epoch != self._inbox.epoch:
            return
        messages = [pack(Kind.TEXT, spoken.reply.text.encode())] if spoken.reply.text else []
        messages += [pack(Kind.AUDIO, payload) for payload in connection.sender.frame(spoken.reply.pcm)]
        self._loop.call_soon_threadsafe(connection.deliver, messages, spoken)


async def _guarded(work: Coroutine[None, None, None], connection: Connection) -> None:
    """Part the connection where its work ends, however it does."""
    try:
        await work
    except Parted as end:
        connection.part(end.parting)
    except ProtocolError as error:
        connection.part(Parting(error.code, str(error), "protocol"))
    except ConnectionError:
        connection.part(Parting(None, "the connection was lost", "lost", resumable=True))
    except PplexError as error:
        connection.part(Parting(Close.INTERNAL, str(error), "engine"))
    except Exception:
        LOGGER.exception("a conversation failed")
        connection.part(Parting(Close.INTERNAL, "The server has a defect; it was logged.", "defect"))
