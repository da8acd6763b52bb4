"""One client's WebSocket: what it sends is heard, what it is sent waits in a bounded outbox."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from aiohttp import WSMsgType, web

from pplex.server.engine import Spoken, now_s
from pplex.server.formats import Receiver, Sender, make_receiver, make_sender
from pplex.server.limits import Bucket, Limits
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.opus import Received
from pplex.server.protocol import FRAME_S, Close, Kind, ProtocolError, pack, pack_metadata, unpack
from pplex.server.request import ChatRequest
from pplex.server.worker import Work, Worker

PING_S = 2.0  # of silence; the official client gives up after 10
REASON_BYTES = 120  # a close frame holds 123
HANG_UP_S = 2.0  # for the close handshake
# The official web client's decoder is ready a second after it connects, and what arrives before is lost.
DECODER_STARTS_S = 1.0

Hear = Callable[[Received, float], None]  # what a message held, and when it arrived


@dataclass(frozen=True)
class Parting:
    """How a connection ends: the code to close with (None where the client has gone), why, and the metric's cause."""

    code: Close | None
    reason: str
    cause: str
    resumable: bool = False


class Parted(Exception):
    """Raised in a connection's work to end it."""

    def __init__(self, parting: Parting):
        super().__init__(parting.reason)
        self.parting = parting


class Connection:
    """A WebSocket that was opened. `parted` is set, once, when it is to end."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        request: ChatRequest,
        hearing: Worker,
        limits: Limits,
        metrics: Metrics,
    ):
        self._ws, self._transport, self._limits, self._metrics = ws, transport, limits, metrics
        self.request, self._hearing, self._loop = request, hearing, asyncio.get_running_loop()
        self.parted: asyncio.Future[Parting] = self._loop.create_future()
        self.heard_s = now_s()  # when what somebody said last arrived
        self.has_begun = False  # whether the handshake was sent
        self._can_hear = asyncio.Event()  # the client's decoder is ready, as far as we can tell
        self._unheard: deque[Work] = deque()  # the first one is being decoded, or its turn will come
        self._outbox: deque[tuple[bytes, Spoken | None]] = deque()
        self._frames = 0  # of the outbox
        self._filled = asyncio.Event()
        self._ignored = set[str]()  # kinds of messages
        self._bytes_in, self._bytes_out = metrics.bytes.labels("in"), metrics.bytes.labels("out")
        self._encode_s, self._total_s = (metrics.frame_seconds.labels(stage) for stage in ("encode", "total"))
        self._sent_s = now = now_s()
        self._ping_timer = self._loop.call_later(PING_S, self._ping)
        self._messages = Bucket(limits.messages, limits.messages_per_s, now)
        self._bytes = Bucket(limits.message_bytes, limits.bytes_per_s, now)
        self._samples = Bucket(limits.samples, limits.samples_per_s, now)
        self._ready_timer = self._loop.call_later(0 if request.knows_us else DECODER_STARTS_S, self._can_hear.set)
        hearing.put(self._prepare)

    async def client_can_hear(self) -> None:
        """Wait until the handshake may go out.

        A client of the reference's protocol gets it after a second. One that speaks earlier was not waiting for it.
        """
        await self._can_hear.wait()

    def part(self, parting: Parting) -> None:
        """End the connection, unless it is ending already."""
        if not self.parted.done():
            self.parted.set_result(parting)
            self._ping_timer.cancel()
            self._ready_timer.cancel()

    # In.

    async def read(self, room: Callable[[], int], hear: Hear) -> None:
        """Take messages until the client leaves; `room` tells how many samples are worth decoding, `hear` gets them."""
        while True:
            message = await self._ws.receive()
            if message.type is WSMsgType.BINARY:
                self._take(message.data, room, hear)
                await asyncio.sleep(0)  # messages that are there already must not keep the others waiting
            elif message.type in (WSMsgType.PING, WSMsgType.PONG):
                self._count_message(len(message.data), now_s())
                if message.type is WSMsgType.PING:
                    await self._ws.pong(message.data)
                await asyncio.sleep(0)
            elif message.type is WSMsgType.TEXT:
                self._count_message(len(message.data), now_s())
                self._ignore("text message")
                await asyncio.sleep(0)
            else:
                return self.part(self._gone(message.type, self._ws.close_code))

    def _take(self, data: bytes, room: Callable[[], int], hear: Hear) -> None:
        now = now_s()
        self._bytes_in.inc(len(data))
        self._count_message(len(data), now)
        kind, payload = unpack(data)
        if kind is None:
            self._ignore("unknown kind" if data else "empty message")
        if kind is Kind.AUDIO:
            self._can_hear.set()
            self._unheard.append(partial(self._decode, payload, now, room, hear))
            if len(self._unheard) == 1:
                self._hearing.put(self._hear_next)

    def _ignore(self, what: str) -> None:
        """Go on after a message that means nothing, as the reference does."""
        self._metrics.ignored.labels(what).inc()
        if what not in self._ignored:
            self._ignored.add(what)
            LOGGER.info("messages ignored", extra={"what": what})

    def _hear_next(self) -> None:
        """In the hearing thread: one message, and then it is the others' turn, however many have come at once."""
        if not self._unheard:
            return
        try:
            self._unheard[0]()
        finally:
            self._unheard.popleft()
            if self._unheard:
                self._hearing.put(self._hear_next)

    def _count_message(self, nbytes: int, now: float) -> None:
        if not (self._messages.take(1, now) and self._bytes.take(nbytes, now)):
            raise ProtocolError(Close.POLICY, "More messages than a conversation needs.")

    def _decode(self, payload: bytes, arrived_s: float, room: Callable[[], int], hear: Hear) -> None:
        """In the hearing thread: no more than there is room for, and than was spoken since the last message."""
        if self.parted.done():
            return
        now, receiver = now_s(), self._receiver
        bad = receiver.bad
        try:
            received = receiver.push(payload, min(room(), int(self._samples.level(now))))
        except ProtocolError as error:
            self._metrics.bad_audio.inc()
            self._loop.call_soon_threadsafe(self.part, Parting(error.code, str(error), "protocol"))
            return
        if received.is_audio:
            self.heard_s = now
        self._samples.take(len(received.pcm), now)
        self._metrics.bad_audio.inc(receiver.bad - bad)
        hear(received, arrived_s)

    def _prepare(self) -> None:
        """In the hearing thread: half a millisecond, which the event loop does not have for each newcomer."""
        _ = self._receiver, self.sender

    @cached_property
    def _receiver(self) -> Receiver:
        return make_receiver(self.request.audio)

    @cached_property
    def sender(self) -> Sender:
        """The speech thread's, from the handshake on."""
        return make_sender(self.request.audio)

    def _gone(self, kind: WSMsgType, code: int | None) -> Parting:
        """The end that a client made: it closed, broke the protocol, or was lost."""
        if kind is WSMsgType.CLOSE:
            return Parting(None, "the client closed the connection", "client")
        if kind is WSMsgType.ERROR and code in (1002, Close.INVALID, 1009):
            return Parting(None, f"closed with {code}, for a message that is too large or no WebSocket's", "protocol")
        return Parting(None, "the connection was lost", "lost", resumable=True)

    # Out.

    def post(self, message: bytes, spoken: Spoken | None = None) -> None:
        """Send a message when its turn comes."""
        self._outbox.append((message, spoken))
        self._filled.set()

    def post_handshake(self) -> None:
        """Tell the client that it is listened to."""
        self.has_begun = True
        self.post(pack(Kind.HANDSHAKE))

    def tell(self, **content: object) -> None:
        """Send metadata."""
        self.post(pack_metadata(content))

    def deliver(self, messages: list[bytes], spoken: Spoken) -> None:
        """Send one frame's messages; a client that has not taken the last ones for too long is parted with."""
        if self.parted.done():
            return
        if self._frames >= self._limits.outbox_frames:
            self._metrics.dropped_frames.labels("outbox").inc(self._frames)
            return self.part(Parting(Close.NOT_READING, "The client does not read.", "slow", resumable=True))
        *others, last = messages
        for message in others:
            self.post(message)
        self._frames += 1
        self.post(last, spoken)

    async def write(self) -> None:
        """Send what is posted."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                message, spoken = self._outbox[0]
                await self._ws.send_bytes(message)
                self._outbox.popleft()
                self._sent_s = now_s()
                self._bytes_out.inc(len(message))
                if spoken is not None:
                    self._frames -= 1
                    self._count(spoken)

    def _ping(self) -> None:
        """Say something where nothing was said for a while: the official client's watchdog counts messages only.

        Before the handshake only to those that ask: other clients take their first message for it.
        """
        silence_s = now_s() - self._sent_s
        if silence_s >= PING_S and not self._outbox and (self.has_begun or self.request.early_metadata):
            self.post(pack(Kind.PING))
            silence_s = 0.0
        self._ping_timer = self._loop.call_later(max(PING_S - silence_s, PING_S / 8), self._ping)

    def _count(self, spoken: Spoken) -> None:
        now = now_s()
        self._metrics.frames.inc()
        self._encode_s.observe(now - spoken.ready_s)
        self._total_s.observe(now - spoken.due_s)
        if now - spoken.due_s > FRAME_S:
            self._metrics.late_frames.inc()

    async def hang_up(self, parting: Parting) -> None:
        """Close the socket as `parting` says; the reason goes ahead as an error message."""
        try:
            async with asyncio.timeout(HANG_UP_S):
                if parting.code is not None and not self._ws.closed and not parting.resumable:
                    await self._ws.send_bytes(pack(Kind.ERROR, parting.reason.encode()))
                reason = parting.reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
                await self._ws.close(code=parting.code or Close.INTERNAL, message=reason)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            # What a client that does not read has not taken would be kept for ever.
            self._loop.call_later(HANG_UP_S, self._transport.abort)
