"""The WebSockets of a replica behind HAProxy: passed on to a server byte for byte. Called by `scale.bridge`.

Uvicorn would decode every message of a client, and the server would decode it again. Measured with 24 conversations:
the event loop took 1.4 ms of processor time for each frame with that, and 0.8 ms without it.

Ray has no option for this. Uvicorn takes a name for its class of WebSockets, and Ray leaves the name at "auto".
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

from uvicorn import config as uvicorn_config
from uvicorn.server import ServerState

from pplex.scale.wires import Wire, plug

Message = dict[str, Any]

PASSAGE = "pplex.passage"  # the extension of an ASGI scope with the connection itself
KNOWN = frozenset(HTTPStatus)
HELD_BYTES = 65536  # that a client may send before the server takes it over; above, it must wait


class Passage(asyncio.Protocol):
    """A client's connection, from its request for a WebSocket on.

    Ray Serve gets a request of ASGI, which lasts as long as the connection. The application either refuses it with
    `websocket.http.response.start` and `.body`, or hands the connection over. Uvicorn makes this protocol.
    """

    def __init__(self, config: uvicorn_config.Config, server_state: ServerState, app_state: Message):
        self._app, self._state = config.loaded_app, server_state
        self._loop = asyncio.get_running_loop()
        self._held = bytearray()
        self._behind: asyncio.Protocol | None = None
        self._answer: list[bytes] = []
        self._is_asked = False
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport

    # For the application.

    async def hand_over(self, make: Callable[[], asyncio.Protocol]) -> None:
        """Let the protocol that `make` returns have the connection from its first byte on; returns when it is closed."""
        if self._transport.is_closing():
            return
        self._behind = make()
        self._behind.connection_made(self._transport)
        self._behind.data_received(bytes(self._held))
        self._held.clear()
        self._transport.resume_reading()
        try:
            await self._closed.wait()
        finally:
            self._transport.abort()  # if Serve ends the request

    async def pass_on(self, address: str) -> None:
        """Connect the client to the server at `address`; returns when the connection is closed. Raises Unreachable."""
        far = await plug(address)
        wire = Wire(self._transport)
        await self._loop.create_connection(lambda: wire, sock=far)
        try:
            await self.hand_over(lambda: Wire(wire.transport))
        finally:
            wire.transport.close()

    # For uvicorn.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn's own classes

    def data_received(self, data: bytes) -> None:
        if self._behind is not None:
            return self._behind.data_received(data)
        self._held += data
        if not self._is_asked:  # uvicorn passes on the whole request at once
            self._is_asked = True
            task = self._loop.create_task(self._ask(_scope(bytes(data), self)))
            self._state.tasks.add(task)
            task.add_done_callback(self._state.tasks.discard)
        elif len(self._held) > HELD_BYTES:
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        return self._behind.eof_received() if self._behind is not None else None

    def pause_writing(self) -> None:
        if self._behind is not None:
            self._behind.pause_writing()

    def resume_writing(self) -> None:
        if self._behind is not None:
            self._behind.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.discard(self)
        self._closed.set()
        if self._behind is not None:
            self._behind.connection_lost(error)

    def shutdown(self) -> None:
        """Uvicorn calls this when it stops to listen. The conversation goes on; Serve waits for its end."""

    # ASGI.

    async def _ask(self, scope: Message) -> None:
        messages = iter([{"type": "websocket.connect"}])

        async def receive() -> Message:
            for message in messages:
                return message
            return await self._loop.create_future()  # for ever: at a disconnect, Serve would cancel the request

        try:
            await self._app(scope, receive, self._send)
        finally:
            if self._behind is None and not self._transport.is_closing():
                self._respond(500, [], b"The replica failed. Try again.\n")

    async def _send(self, message: Message) -> None:
        """Refuse the client. Serve itself does this, too, with the messages of a request that is not a WebSocket."""
        kind = message["type"].removeprefix("websocket.")
        if kind == "http.response.start":
            self._answer = [b"%d" % message["status"], *(b": ".join(pair) for pair in message.get("headers", ()))]
        elif kind == "http.response.body" and self._behind is None:
            status, *lines = self._answer
            self._respond(int(status), lines, message.get("body", b""))

    def _respond(self, status: int, lines: Iterable[bytes], body: bytes) -> None:
        phrase = HTTPStatus(status).phrase if status in KNOWN else "Refused"
        head = [f"HTTP/1.1 {status} {phrase}".encode(), *lines, b"content-length: %d" % len(body), b"connection: close"]
        self._transport.write(b"\r\n".join([*head, b"", body]))
        self._transport.close()


def _scope(request: bytes, passage: Passage) -> Message:
    """The scope of ASGI for a request that uvicorn has parsed and written anew."""
    first, *lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    target = re.sub(r"^\w+://[^/?]*", "", first.split(b" ")[1].decode("latin-1"))  # of an absolute address
    path, _, query = target.partition("?")
    return {
        "type": "websocket",
        "path": unquote(path),
        "query_string": query.encode("latin-1"),
        "headers": [tuple(line.split(b": ", 1)) for line in lines],
        "extensions": {PASSAGE: passage},
    }


def use_passages() -> None:
    """Let uvicorn servers that start later in this process use `Passage`."""
    uvicorn_config.WS_PROTOCOLS["auto"] = f"{__name__}:{Passage.__name__}"
