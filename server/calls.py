"""Event loop: holds a conversation over the WebSocket of a request, in any wire protocol.

Called by the routes of each protocol.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import cast

from aiohttp import web

from pplex.server.access import subprotocols
from pplex.server.connection import Connection
from pplex.server.conversation import ServerContext, ServerConversation
from pplex.server.limits import MAX_ORDER_MESSAGE
from pplex.server.logs import log_as
from pplex.server.reception import Reception
from pplex.server.refusals import Refusals
from pplex.server.request import ConversationRequest, RequestError
from pplex.server.room import opening, too_late
from pplex.server.scheduler import now_s
from pplex.server.wire import CloseReason, WireProtocol

SEND_BUFFER = 32768  # bytes the kernel keeps for a client: seconds of audio, not minutes
STATUSES = {"protocol": 400, "token": 401}  # of a refusal after the upgrade, by its cause
CLIENT_LEFT = 499  # the status of an answer that nobody receives


class Calls:
    """The two ways to converse. `credit` lets a connection send what it has held back for some seconds."""

    def __init__(
        self,
        context: ServerContext,
        reception: Reception,
        refusals: Refusals,
        credit: Callable[[asyncio.BaseTransport, float], None],
    ):
        self._context, self._reception, self._refusals, self._credit = context, reception, refusals, credit
        self._limits, self._metrics = context.limits, context.metrics

    async def converse(
        self,
        request: web.Request,
        asked: ConversationRequest,
        resumed: ServerConversation | None,
        wire: WireProtocol,
    ) -> web.StreamResponse:
        """Hold a new or a resumed conversation, whose settings came with the request. The caller has checked everything."""
        ws = self._socket(request, wire)
        self._context.tracing.accept(request.headers)
        conversation = resumed or self._reception.enter(asked, wire)
        log_as(conversation.id)
        why = None
        try:
            try:
                await ws.prepare(request)
            except ConnectionError:
                return web.Response(status=CLIENT_LEFT)
            self._context.hearing.put(wire.prepare)
            connection = self._connect(ws, request, wire)
            why = await conversation.run(connection)
        finally:
            if why is None and resumed is None:
                conversation.end("lost")  # the connection was lost before the conversation began
        self._metrics.partings.labels(why.cause).inc()
        await connection.hang_up(why)
        return ws

    async def converse_after_start(self, request: web.Request, wire: WireProtocol) -> web.StreamResponse:
        """Hold a conversation whose settings come over the open socket: `wire.parse` returns a StartMessage for them.

        The caller has checked who asks. Raises RequestError if the server takes no conversation now.
        """
        self._reception.check_open()
        self._reception.check_spare_socket()
        ws = self._socket(request, wire)
        self._context.tracing.accept(request.headers)
        try:
            await ws.prepare(request)
        except ConnectionError:
            return web.Response(status=CLIENT_LEFT)
        connection = self._connect(ws, request, wire)
        why = await self._start_and_converse(connection)
        connection.end(why)  # a refused start has not done so
        await connection.hang_up(why)
        return ws

    async def _start_and_converse(self, connection: Connection) -> CloseReason:
        """Wait for the start message, which takes a slot, and hold the conversation; returns why the connection ends."""
        self._reception.unstarted.add(connection)
        try:
            at_once = connection.wire.starts_at_once
            asked = await opening(connection, self._limits.header_s if at_once else self._limits.start_s)
        finally:
            self._reception.unstarted.discard(connection)
        if asked is None:
            why = connection.ended.result()
            if why.cause in STATUSES:
                self._note_refusal(connection, STATUSES[why.cause], why.reason)
            return why
        try:
            self._reception.check(asked)
            conversation = self._reception.enter(asked, connection.wire)
        except RequestError as error:
            self._note_refusal(connection, error.status, str(error))
            return too_late(error)
        log_as(conversation.id)
        self._context.hearing.put(connection.wire.prepare)
        why = await conversation.run(connection)
        self._metrics.partings.labels(why.cause).inc()
        return why

    def _note_refusal(self, connection: Connection, status: int, reason: str) -> None:
        self._refusals.note(status, reason, now_s(), protocol=connection.wire.name)

    def _socket(self, request: web.Request, wire: WireProtocol) -> web.WebSocketResponse:
        """The WebSocket of a request, before its upgrade. Raises RequestError if the request asks for none."""
        spoken = ("realtime",) if wire.name != "chat" and "realtime" in subprotocols(request) else ()
        ws = web.WebSocketResponse(
            timeout=2.0,
            protocols=spoken,
            compress=False,
            autoping=False,  # the connection answers pings itself: aiohttp would not limit or count them
            max_msg_size=max(wire.max_message, MAX_ORDER_MESSAGE if wire.controls else 0),
            heartbeat=self._limits.heartbeat_s,
            writer_limit=SEND_BUFFER // 4,
        )
        if not ws.can_prepare(request):
            raise RequestError(426, "This is a WebSocket: connect to it with ws:// or wss://.")
        return ws

    def _connect(self, ws: web.WebSocketResponse, request: web.Request, wire: WireProtocol) -> Connection:
        """The connection over an upgraded WebSocket, with a small buffer for data that the client does not read."""
        transport = cast(asyncio.Transport, request.transport)
        transport.set_write_buffer_limits(high=SEND_BUFFER // 4)
        listener: socket.socket = transport.get_extra_info("socket")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return Connection(ws, transport, wire, self._limits, self._metrics, partial(self._credit, transport))
