"""The ASGI application of a replica: passes each request on to a `Server`, its own or another replica's.

Ray Serve speaks ASGI, and our server is aiohttp's. The server gets the very connection of a WebSocket (`scale.sockets`),
and other requests over a local connection. So every rule of the server holds.
Called by `scale.replica`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import parse_qs

import aiohttp
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from yarl import URL

from pplex.scale.sockets import PASSAGE, Passage
from pplex.scale.tunnel import LOST, Refused, leave, open_tunnel
from pplex.scale.wires import Unreachable

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES = 65536  # of a request: a login has less
KEYS = ("resume", "snapshot")  # parameters with a key
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
OVER = b"The conversation with this key is over. Start a new one.\n"  # also if it has the snapshot
ENDING = b"This replica is ending. Try again.\n"
REPLICA = "x-pplex-replica"  # header of answers that are not WebSockets: the replica that answered
PLAIN = ("content-type", "text/plain; charset=utf-8")


class Host(Protocol):
    """What the bridge needs of its replica."""

    name: str
    own: str  # the address of its server, host:port

    async def start(self) -> None:
        """Start the server, and wait until it is ready."""

    async def end(self) -> None:
        """Let conversations finish, and stop the server."""

    def make_protocol(self) -> asyncio.Protocol:
        """The protocol of a new connection of its server."""

    def find(self, key: str) -> str | None:
        """The address that a resume key names; None if the key is not ours."""

    async def metrics(self) -> bytes:
        """The metrics of all replicas."""


class Bridge:
    """An ASGI application."""

    def __init__(self, host: Host):
        self._host = host
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "websocket":
                await self._websocket(scope, receive, send)
            case "http" if scope["path"] == "/metrics" and scope["method"] == "GET":
                body = await self._host.metrics()
                await _answer(send, 200, [("content-type", "text/plain; version=0.0.4; charset=utf-8")], body)
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await self._live(receive, send)

    # The life of the application.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._host.start()
        except Exception as error:
            return await send({"type": "lifespan.startup.failed", "message": str(error)})
        self._session = aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._host.end()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    # Requests.

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on a request that is not a WebSocket, such as one for a page."""
        assert self._session is not None
        body = await _body(receive)
        query = scope["query_string"].decode("latin-1")
        raw_path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0]
        if len(body) > BODY_BYTES or not raw_path.startswith("/"):
            status, reason = (
                (413, b"This request is too large.\n") if body else (400, b"This is not an address here.\n")
            )
            return await _answer(send, status, [PLAIN], reason)
        url = URL(f"http://{self._address(query)}{raw_path}{'?' + query if query else ''}", encoded=True)
        headers = _headers(scope["headers"])
        try:
            asked = self._session.request(
                scope["method"], url, headers=headers, data=body or None, allow_redirects=False, skip_auto_headers=SKIP
            )
            async with asked as answer:
                kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
                await send(_start("http.response.start", answer.status, [*kept, (REPLICA, self._host.name)]))
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
            await _answer(send, *self._unreachable(query))

    def _address(self, query: str) -> str:
        """The server for a request: the one that holds the conversation to resume or the snapshot, or our own."""
        given = parse_qs(query)
        key = next((given[name][0] for name in KEYS if name in given), None)
        return (key and self._host.find(key)) or self._host.own

    def _unreachable(self, query: str) -> tuple[int, Iterable[tuple[str, str]], bytes]:
        """The answer if a server does not exist any more: ours is ending; another one has lost its conversations."""
        if self._address(query) == self._host.own:
            return 503, [PLAIN, ("retry-after", "5")], ENDING
        return 404, [PLAIN], OVER

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        query = scope["query_string"].decode("latin-1")
        passage: Passage | None = scope.get("extensions", {}).get(PASSAGE)
        address = self._address(query)
        try:
            if passage is None:  # behind Serve's proxy in Python
                await _converse(await open_tunnel(address, scope), receive, send)
            elif address == self._host.own:
                await passage.hand_over(self._host.make_protocol)
            else:
                await passage.pass_on(address)
        except Refused as refused:
            await _answer(send, refused.status, refused.headers, refused.body, "websocket.http.response")
        except Unreachable:
            await _answer(send, *self._unreachable(query), "websocket.http.response")


SKIP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


async def _converse(tunnel: ClientConnection, receive: Receive, send: Send) -> None:
    """Pass messages both ways until one side ends. Serve cancels this task when the client has left."""
    ended = _Ended()
    upwards = asyncio.create_task(_up(tunnel, receive, ended))
    try:
        await send({"type": "websocket.accept", "subprotocol": tunnel.subprotocol})
        async for message in tunnel:
            await send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
    except ConnectionClosed:
        pass
    except Exception:  # the client has left while we sent
        ended.code = ended.code or LOST
    finally:
        upwards.cancel()
        if tunnel.close_code is None or ended.code is not None:
            await asyncio.shield(asyncio.create_task(leave(tunnel, ended.code or LOST)))
    if ended.code is None and tunnel.close_code not in (None, 1005, LOST):
        await send({"type": "websocket.close", "code": tunnel.close_code, "reason": tunnel.close_reason or ""})


class _Ended:
    """How the client left."""

    code: int | None = None


async def _up(tunnel: ClientConnection, receive: Receive, ended: _Ended) -> None:
    """Pass on a client's messages until it leaves."""
    with suppress(ConnectionClosed):
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                closed = "reason" in message and message.get("code", LOST) != LOST  # otherwise the connection broke
                ended.code = message["code"] if closed else LOST
                return await leave(tunnel, ended.code)
            data = message.get("bytes")
            await tunnel.send(data if data is not None else message["text"])


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return [(name, value) for name, value in texts if name.lower() not in HOP_BY_HOP | {"content-length"}]


async def _body(receive: Receive) -> bytes:
    body = b""
    while len(body) <= BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


def _start(kind: str, status: int, headers: Iterable[tuple[str, str]]) -> Message:
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": kind, "status": status, "headers": pairs}


async def _answer(
    send: Send, status: int, headers: Iterable[tuple[str, str]], body: bytes, kind: str = "http.response"
) -> None:
    kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
    await send(_start(f"{kind}.start", status, kept))
    await send({"type": f"{kind}.body", "body": body})
