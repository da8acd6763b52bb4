"""Event loop: one client's WebSocket. Its audio goes to the hearing thread; messages to it wait in a bounded outbox."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from aiohttp import WSMsgType, web

from pplex.server.hearing import IncomingAudio
from pplex.server.limits import Bucket, Limits
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.request import ConversationRequest
from pplex.server.scheduler import FrameReply, now_s
from pplex.server.wire import (
    FRAME_S,
    AnsweredMessage,
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    ClosingMessage,
    Encoded,
    IgnoredMessage,
    Message,
    NoEffectMessage,
    OrderMessage,
    ProtocolError,
    StartMessage,
    WireProtocol,
)

LOOK_S = 0.1  # before the start, between looks whether it is overdue
PING_S = 2.0  # of silence; the official client gives up after 10
REASON_BYTES = 120  # a close frame holds 123
HANG_UP_S = 2.0  # for the close handshake
TURN_BYTES = 16384  # that one client's messages may have before it is the turn of other clients
MESSAGE_BYTES = 2048  # that any message counts in addition


ASKED_FOR = CloseReason(Close.NORMAL, "The client asked for the end.", "client")
NOT_READING = CloseReason(Close.NOT_READING, "The client does not read.", "slow", resumable=True)


class ConnectionEnd(Exception):
    """Raised in a connection's tasks to end it."""

    def __init__(self, why: CloseReason):
        super().__init__(why.reason)
        self.why = why


class Connection:
    """An open WebSocket. `ended` is set once, with the reason, when the connection must end."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        wire: WireProtocol,
        limits: Limits,
        metrics: Metrics,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ):
        """`on_wait` gets the seconds that a client with pauses had to wait: it may send what it held back."""
        self._on_wait = on_wait
        self._ws, self._transport, self.wire, self._limits, self._metrics = ws, transport, wire, limits, metrics
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[CloseReason] = self._loop.create_future()
        self.begun = asyncio.Event()  # set when the handshake is sent
        self._can_hear = asyncio.Event()  # whether the client's decoder is ready: an estimate
        self._ready_timer = self._loop.call_later(wire.hears_after_s, self._can_hear.set)
        self._outbox: deque[tuple[Message, FrameReply | None]] = deque()
        self._frames = self._waiting_bytes = 0  # of the outbox
        self._filled = asyncio.Event()
        self._ignored = set[str]()  # kinds of messages
        self.conversation = ""  # whose connection it is, for the log
        self.frames = self.late_frames = 0  # answered, for the trace
        self._bytes_in, self._bytes_out = metrics.bytes.labels("in"), metrics.bytes.labels("out")
        self._encode_s, self._total_s = (metrics.frame_seconds.labels(stage) for stage in ("encode", "total"))
        self._sent_s = now = now_s()
        self._ping_timer = self._loop.call_later(PING_S, self._ping)
        self._received = 0  # bytes that are not yet in the metrics
        self._turn = 0  # bytes until other clients have their turn
        self._messages = Bucket(limits.messages, limits.messages_per_s, now)
        self._bytes = Bucket(limits.message_bytes, limits.bytes_per_s, now)

    def end(self, why: CloseReason) -> None:
        """End the connection, unless it is ending already."""
        if not self.ended.done():
            self.ended.set_result(why)
            self._count_received()
            self._ping_timer.cancel()
            self._ready_timer.cancel()

    def refuse(self, error: ProtocolError) -> None:
        """End the connection because of what the client sent."""
        self.end(CloseReason(error.code, str(error), error.cause))

    # In.

    async def start(self) -> ConversationRequest:
        """Take messages until the client begins a conversation. Raises ConnectionEnd if it leaves before that."""
        await self._send_all(self.wire.opened())
        while True:
            match self.wire.overdue() or await self._receive_soon():
                case StartMessage(request, answers):
                    await self._send_all(answers)
                    return request
                case AnsweredMessage(answers):
                    await self._send_all(answers)
                case ClosingMessage():
                    raise ConnectionEnd(ASKED_FOR)
                case IgnoredMessage(kind):
                    self._ignore(kind)
                case _:
                    pass  # nobody listens yet

    async def read(self, incoming: IncomingAudio, order: Callable[[bytes], None]) -> None:
        """Take messages until the client leaves. `order` gets those with an order to the conversation."""
        while True:
            self._take(await self._receive(), incoming, order)

    async def _receive_soon(self) -> ClientMessage:
        """The client's next message; one without effect if none comes at once."""
        try:
            async with asyncio.timeout(LOOK_S):
                return await self._receive()
        except TimeoutError:
            return NoEffectMessage()

    async def _receive(self) -> ClientMessage:
        """The client's next message. Raises ConnectionEnd if it has left, or ProtocolError."""
        while True:
            if self._turn <= 0:  # other clients must not wait for a client with many messages
                self._turn = TURN_BYTES
                await asyncio.sleep(0)
            message = await self._ws.receive()
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                return self._parse(message.data)
            if message.type not in (WSMsgType.PING, WSMsgType.PONG):
                raise ConnectionEnd(self._gone(message.type, self._ws.close_code))
            self._count_message(len(message.data))
            if message.type is WSMsgType.PING:
                await self._ws.pong(message.data)

    def _parse(self, data: Message) -> ClientMessage:
        self._received += len(data)
        self._count_message(len(data))
        message, most = self.wire.parse(data), self.wire.max_message
        if len(data) > most and not isinstance(message, OrderMessage):
            raise ProtocolError(Close.TOO_LARGE, f"A message above {most:,} bytes.")
        return message

    def _take(self, message: ClientMessage, incoming: IncomingAudio, order: Callable[[bytes], None]) -> None:
        match message:
            case AudioMessage(payload):
                self._can_hear.set()
                incoming.put(payload, now_s())
            case OrderMessage(payload, answers):
                self._answer(answers)
                order(payload)
            case AnsweredMessage(answers):
                self._answer(answers)
            case ClosingMessage():
                raise ConnectionEnd(ASKED_FOR)
            case IgnoredMessage(kind):
                self._ignore(kind)
            case NoEffectMessage() | StartMessage():  # a protocol answers a second start itself
                pass
            case other:
                assert_never(other)

    def _count_message(self, nbytes: int) -> None:
        now = now_s()
        self._turn -= nbytes + MESSAGE_BYTES
        if not (self._messages.take(1, now) and self._bytes.take(nbytes, now)):
            raise ProtocolError(Close.POLICY, "More messages than a conversation needs.")

    def _ignore(self, kind: str) -> None:
        """Continue after a message without a meaning, as the reference does."""
        self._metrics.ignored.labels(kind).inc()
        if kind not in self._ignored:
            self._ignored.add(kind)
            LOGGER.info("messages ignored", extra={"conversation": self.conversation, "what": kind})

    def _gone(self, kind: WSMsgType, code: int | None) -> CloseReason:
        """The reason: the client closed, violated the WebSocket protocol, or was lost."""
        if kind is WSMsgType.CLOSE:
            return CloseReason(None, "the client closed the connection", "client")
        if kind is WSMsgType.ERROR and code in (1002, Close.INVALID, 1009):
            return CloseReason(
                None, f"closed with {code}: a message was too large, or not a WebSocket message", "protocol"
            )
        return CloseReason(None, "the connection was lost", "lost", resumable=True)

    # Out.

    async def client_can_hear(self) -> None:
        """Wait until the handshake may be sent: when the client's decoder is ready, or when the client speaks."""
        await self._can_hear.wait()

    def begin(self, waited_s: float = 0.0) -> None:
        """Tell the client that the conversation listens. `waited_s`: how long it has waited for that."""
        if self.wire.has_pauses:  # it may send at once what it has recorded meanwhile
            self._messages.credit(waited_s)
            self._bytes.credit(waited_s)
            self._on_wait(waited_s)
        self.begun.set()
        self.post(self.wire.handshake())

    def tell(self, **content: object) -> None:
        """Send metadata."""
        for message in self.wire.metadata(content):
            self.post(message)

    def answer(self, content: Mapping[str, object]) -> None:
        """Send metadata that a client can cause. If too much of it waits, the client does not read, and is disconnected."""
        self._answer(self.wire.metadata(content))

    def _answer(self, messages: Iterable[Message]) -> None:
        if self.ended.done():
            return
        if len(self._outbox) >= self._limits.answers or self._waiting_bytes > self._limits.answer_bytes:
            return self.end(NOT_READING)
        for message in messages:
            self.post(message)

    def post(self, message: Message | None, reply: FrameReply | None = None) -> None:
        """Put a message into the outbox. None puts nothing."""
        if message is None:
            return
        self._outbox.append((message, reply))
        self._waiting_bytes += len(message)
        self._filled.set()

    def deliver(self, encoded: Encoded, reply: FrameReply) -> None:
        """Put one frame's messages into the outbox. If it is full, the client does not read, and is disconnected."""
        if self.ended.done():
            return
        messages = encoded() if callable(encoded) else encoded
        if not messages:
            return self._count_reply(reply)
        if self._frames >= self._limits.outbox_frames:
            self._metrics.dropped_frames.labels("outbox").inc(self._frames + 1)
            return self.end(NOT_READING)
        *others, last = messages
        for message in others:
            self.post(message)
        self._frames += 1
        self.post(last, reply)

    async def write(self) -> None:
        """Send the messages of the outbox."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                message, reply = self._outbox[0]
                await self._send(message)
                self._outbox.popleft()
                self._waiting_bytes -= len(message)
                self._sent_s = now_s()
                self._bytes_out.inc(len(message))
                if reply is not None:
                    self._frames -= 1
                    self._count_reply(reply)

    async def _send_all(self, messages: Iterable[Message]) -> None:
        for message in messages:
            await self._send(message)

    async def _send(self, message: Message) -> None:
        await (self._ws.send_str(message) if isinstance(message, str) else self._ws.send_bytes(message))

    def _ping(self) -> None:
        """Send a ping after a silence: the watchdog of the official client counts only messages.

        Before the handshake only clients that ask for it get a ping: other clients take any first message for the handshake.
        """
        silence_s = now_s() - self._sent_s
        if silence_s >= PING_S and not self._outbox and (self.begun.is_set() or self.wire.early_metadata):
            self.post(self.wire.ping())
            silence_s = 0.0
        self._ping_timer = self._loop.call_later(max(PING_S - silence_s, PING_S / 8), self._ping)

    def _count_received(self) -> None:
        """Once a frame, because a metric takes some time."""
        self._bytes_in.inc(self._received)
        self._received = 0

    def _count_reply(self, reply: FrameReply) -> None:
        now = now_s()
        self._count_received()
        self._metrics.frames.inc()
        self.frames += 1
        self._encode_s.observe(now - reply.ready_s)
        self._total_s.observe(now - reply.due_s)
        if now - reply.due_s > FRAME_S:
            self._metrics.late_frames.inc()
            self.late_frames += 1

    async def hang_up(self, why: CloseReason) -> None:
        """Close the socket. Before that, say why, if the protocol can."""
        farewell, code = list[Message](), Close.INTERNAL
        try:
            farewell, code = self.wire.farewell(why)
            async with asyncio.timeout(HANG_UP_S):
                for message in farewell if not self._ws.closed else []:
                    await self._send(message)
                reason = why.reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
                await self._ws.close(code=code, message=reason)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            # Otherwise messages that a client never reads would stay in memory.
            self._loop.call_later(HANG_UP_S, self._transport.abort)
