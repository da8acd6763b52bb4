"""Event loop: a conversation, from its slot to its end, over one connection, or over several if connections are lost."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

from pplex.runtime.errors import PplexError
from pplex.runtime.snapshot import Snapshot
from pplex.server.admission import Ticket
from pplex.server.connection import Connection, ConnectionEnd
from pplex.server.control import Control, ControlContext
from pplex.server.hearing import IncomingAudio
from pplex.server.inbox import Inbox
from pplex.server.limits import Limits
from pplex.server.listening import Listener
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.recording import Recording
from pplex.server.request import ConversationRequest, session_facts
from pplex.server.scheduler import ScheduledSession, Scheduler, now_s
from pplex.server.silence import feed_silence
from pplex.server.speech import OutgoingAudio
from pplex.server.tracing import Tracing
from pplex.server.transcriber import Transcriber
from pplex.server.user_utterances import Words
from pplex.server.wire import FRAME_S, Close, CloseReason, ProtocolError, WireProtocol
from pplex.server.worker import Worker

WATCH_S = 0.25  # between looks at the clock


@dataclass(frozen=True)
class ServerContext:
    """Shared by all conversations of a server. `recordings`: the folder of recorded conversations, or None."""

    scheduler: Scheduler
    hearing: Worker
    speech: Worker
    limits: Limits
    metrics: Metrics
    frame_size: int
    recordings: Path | None
    tracing: Tracing
    control: ControlContext
    transcriber: Transcriber | None = None


def random_key() -> str:
    """A key that nobody can guess."""
    return secrets.token_urlsafe(24)


class ServerConversation:
    """The slot, the session, and the key to resume with. It stays when a connection is lost."""

    def __init__(
        self,
        context: ServerContext,
        request: ConversationRequest,
        ticket: Ticket,
        key: str,
        on_over: Callable[["ServerConversation"], None],
        wire: WireProtocol,
        snapshot: Snapshot | None = None,
    ):
        """`key`: with it a client can resume. `on_over` is called once, when the conversation is over.

        `wire` is the protocol of the first connection. `snapshot`: what the conversation continues.
        """
        self.id, self.key = secrets.token_hex(6), key
        self.connection: Connection | None = None
        self.trace = context.tracing.begin(self.id, wire.audio)
        self._context, self._limits, self._metrics = context, context.limits, context.metrics
        self._ticket, self._on_over = ticket, on_over
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(context.frame_size, context.limits.backlog_frames, never_ahead=wire.plays_at_once)
        self._outgoing = OutgoingAudio(self.id, self._inbox)
        if context.transcriber is not None:
            self._outgoing.listener = Listener(context.transcriber, self._tell_words)
        self._scheduled = ScheduledSession(self._inbox, request, self._outgoing.answer, snapshot=snapshot)
        self._control = Control(context.control, self._scheduled, self.id, self._answer, self._stop_for_defect)
        self._admitted_s = self._began_s = now_s()
        self._forgotten: asyncio.TimerHandle | None = None  # while a client may return
        self._dropped = 0  # frames, as reported and counted
        self._is_begun = self._is_over = False

    @property
    def is_begun(self) -> bool:
        """Whether the handshake was sent."""
        return self._is_begun

    def dismiss(self, why: CloseReason) -> None:
        """End the conversation from outside: through its connection, if it has one."""
        if self.connection is not None:
            self.connection.end(why)
        else:
            self.end(why.cause)

    # Over a connection.

    async def run(self, connection: Connection) -> CloseReason:
        """Converse until the connection ends. After that the conversation is over, or waits for its client to return."""
        if self._is_over:  # it ended while the connection was made
            return CloseReason(Close.GOING_AWAY, "The conversation is over.", "over")
        self._inbox.clear()  # before the speech thread gets the new connection: replies to earlier frames are discarded
        previous, self.connection = self.connection, connection
        self._outgoing.connection = connection
        connection.conversation = self.id
        if previous is not None:
            previous.end(CloseReason(Close.RESUMED_ELSEWHERE, "Resumed by another connection.", "resumed"))
        if self._forgotten is not None:
            self._remember(self._forgotten)
        incoming = self._incoming(connection)

        def order(payload: bytes) -> None:
            self._control.take(payload, connection.begun.is_set())

        tasks = [
            asyncio.create_task(guarded(work, connection))
            for work in (
                connection.read(incoming, order),
                connection.write(),
                self._talk(connection, incoming),
                feed_silence(connection, incoming, self._limits.silence_after_s),
            )
        ]
        try:
            return await self._converse(connection)
        finally:  # also if the server cancels its handlers
            incoming.close()
            if self.connection is connection:
                self._leave(connection)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, connection: Connection) -> CloseReason:
        """Wait for the connection's end."""
        with self.trace.stage("connection") as facts:
            try:
                why = await connection.ended
                facts["cause"] = why.cause
                return why
            finally:
                facts |= {"frames": connection.frames, "late_frames": connection.late_frames}

    def _incoming(self, connection: Connection) -> IncomingAudio:
        context = self._context
        return IncomingAudio(
            connection.wire,
            self._inbox,
            context.scheduler,
            context.hearing,
            self._limits,
            self._metrics,
            refuse=connection.refuse,
            is_admitted=lambda: self._ticket.granted,
        )

    def _answer(self, content: Mapping[str, object]) -> None:
        """Answer an order, or report what came of it. A client that is away, or has no control any more, gets nothing."""
        if self.connection is not None and self.connection.wire.controls:
            self.connection.answer(content)

    def _stop_for_defect(self) -> None:
        self.dismiss(CloseReason(Close.INTERNAL, "The server has a defect; it was logged.", "defect"))

    def _tell_words(self, words: list[Words]) -> None:
        if self.connection is not None and self.connection.wire.takes_words:
            self.connection.tell(type="heard", words=words)

    def _leave(self, connection: Connection) -> None:
        """After the connection's end: wait for its client to return if it may, otherwise end."""
        self.connection = self._outgoing.connection = None
        why = connection.ended.result() if not connection.ended.cancelled() and connection.ended.done() else None
        if why is None or not why.resumable or not self._is_begun or not self._resume_s(connection):
            return self.end(why.cause if why else "cancelled")
        self._inbox.clear()
        self._forgotten = self._loop.call_later(self._limits.resume_s, self.end, "forgotten")
        self._metrics.slots_kept.inc()
        LOGGER.info("connection lost", extra={"conversation": self.id, "cause": why.cause})

    def _resume_s(self, connection: Connection) -> float:
        """How long a client may stay away, in seconds; 0 if it cannot return."""
        return self._limits.resume_s if connection.wire.can_resume else 0.0

    def _remember(self, forgotten: asyncio.TimerHandle) -> None:
        forgotten.cancel()
        self._forgotten = None
        self._metrics.slots_kept.dec()

    def end(self, cause: str) -> None:
        """Free the slot. A second call does nothing."""
        if self._is_over:
            return
        self._is_over = self._outgoing.is_over = True
        if self._forgotten is not None:
            self._remember(self._forgotten)
        self._count_dropped()
        self._context.scheduler.close(self._scheduled)
        self._ticket.release()
        if self._outgoing.listener is not None:
            self._outgoing.listener.close()
        if self._outgoing.recording is not None:
            self._context.speech.put(self._outgoing.close)
        self._on_over(self)
        self.trace.end(cause)
        seconds = round(now_s() - self._admitted_s, 3)
        facts = {"conversation": self.id, "cause": cause, "seconds": seconds, "dropped_frames": self._inbox.dropped}
        LOGGER.info("conversation ended", extra=facts)

    # From slot to end.

    async def _talk(self, connection: Connection, incoming: IncomingAudio) -> None:
        """Wait for a slot, prime, send the handshake, and watch the clock.

        Handshakes go out at multiples of 80 ms, for all conversations. Clients that speak from then on complete their frames
        at the same time, and one call steps them all.
        """
        resumed = self._is_begun
        if not resumed:
            with self.trace.stage("queue"):
                await self._wait_for_slot(connection)
            with self.trace.stage("prime"):
                await self._prime()
            self._began_s = now_s()  # waiting does not count towards the maximum duration
        await connection.client_can_hear()
        position = await self._control.position() if connection.wire.controls else None
        await asyncio.sleep(-now_s() % FRAME_S)
        connection.begin(now_s() - self._admitted_s)
        self._tell_session(connection, resumed, position)
        self._inbox.start()
        self._context.scheduler.wake()
        self._is_begun, incoming.heard_s = True, now_s()
        protocol = connection.wire.name
        (self._metrics.resumed if resumed else self._metrics.conversations.labels(protocol)).inc()
        facts = {"conversation": self.id, "protocol": protocol}
        LOGGER.info("conversation resumed" if resumed else "conversation begun", extra=facts)
        await self._watch(connection, incoming)

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
            raise ConnectionEnd(CloseReason(Close.TRY_LATER, reason, "queue")) from None

    def _tell_position(self, connection: Connection) -> None:
        """Tell the client its position, but not clients of the reference's protocol: they expect the handshake first."""
        if connection.wire.early_metadata:
            connection.tell(type="queued", position=self._ticket.position)

    async def _prime(self) -> None:
        began = now_s()
        if self._context.recordings is not None:
            self._outgoing.recording = Recording(self._context.recordings, self.id)
        self._context.scheduler.open(self._scheduled)
        await asyncio.wrap_future(self._scheduled.primed)
        self._metrics.priming_seconds.observe(now_s() - began)

    def _tell_session(self, connection: Connection, resumed: bool, position: int | None) -> None:
        resume_s = self._resume_s(connection)
        facts = session_facts(self._control.request, self.id, self._context.frame_size)
        if position is not None:
            facts["frame"] = position
        facts |= {"audio": connection.wire.audio, "resumed": resumed}
        connection.tell(**facts, resume=self.key if resume_s else None, resume_seconds=resume_s)

    async def _watch(self, connection: Connection, incoming: IncomingAudio) -> None:
        """Report dropped frames, and end a conversation that is idle or has reached its maximum duration."""
        limits = self._limits
        idle_s = limits.pause_s if connection.wire.has_pauses else limits.idle_s
        while True:
            await asyncio.sleep(WATCH_S)
            if self._count_dropped():
                connection.tell(type="dropped", frames=self._dropped)
            if now_s() - incoming.heard_s > idle_s:
                raise ConnectionEnd(CloseReason(Close.POLICY, f"No audio for {idle_s:g} s.", "idle"))
            if now_s() - self._began_s > limits.duration_s:
                reason = f"A conversation may last {limits.duration_s:g} s."
                raise ConnectionEnd(CloseReason(Close.POLICY, reason, "duration"))

    def _count_dropped(self) -> int:
        """Frames dropped since the last call."""
        dropped = self._inbox.dropped - self._dropped
        self._dropped += dropped
        self._metrics.dropped_frames.labels("backlog").inc(dropped)
        return dropped


async def guarded(work: Coroutine[None, None, None], connection: Connection) -> None:
    """Run a task of a connection, and end the connection when the task ends for any reason."""
    try:
        await work
    except ConnectionEnd as end:
        connection.end(end.why)
    except ProtocolError as error:
        connection.refuse(error)
    except ConnectionError:
        connection.end(CloseReason(None, "the connection was lost", "lost", resumable=True))
    except PplexError as error:
        connection.end(CloseReason(Close.INTERNAL, str(error), "engine"))
    except Exception:
        LOGGER.exception("a conversation failed")
        connection.end(CloseReason(Close.INTERNAL, "The server has a defect; it was logged.", "defect"))
