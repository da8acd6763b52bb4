"""One WebSocket to a server, of any protocol, and the errors of a client. Used by `client_link.py` and `load.py`."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, Self

import aiohttp
from aiohttp import WSMsgType
from aiohttp.connector import Connection
from yarl import URL

from pplex.runtime.errors import PplexError
from pplex.server.addresses import parse_token
from pplex.server.chat_messages import PATH
from pplex.server.wire import Close, Message

CONNECT_S = 10.0
UPGRADE_S = 30.0
SILENCE_S = 10.0  # without a message until the connection counts as lost; /api/chat sends one at least every 2 s
CLOSE_S = 2.0


class ServerError(PplexError):
    """The server refused a conversation, ended it, or cannot be reached. `reason`: the server's sentence."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


class UnreachableError(ServerError):
    """No server answers at this address, or it is another kind of server."""


class RefusedError(ServerError):
    """Refused before the conversation began: the HTTP `status`, and the seconds to wait if the server sent them."""

    def __init__(self, status: int, reason: str, retry_after_s: float | None):
        self.status, self.retry_after_s = status, retry_after_s
        wait = "" if retry_after_s is None else f" Try again in {retry_after_s:g} s."
        super().__init__(f"The server refused ({status}): {reason}{wait}", reason)


class ClosedError(ServerError):
    """Ended by the server: the close `code` of the WebSocket (docs/protocol.md lists the codes)."""

    def __init__(self, code: int, reason: str):
        self.code = code
        super().__init__(f"The server ended the conversation ({code}): {reason or 'without a reason'}", reason)


class LostError(ServerError):
    """The connection was lost. Within `resume_seconds` the conversation can be resumed: connect(url, resume=key)."""


class Line:
    """One WebSocket: messages out and in."""

    def __init__(self, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, connector: "_Connector"):
        self._http, self._socket, self._connector = http, socket, connector
        self.complaint = ""  # what the server has said about its reason to close, if it says so in a message
        self.silence_s = SILENCE_S

    @classmethod
    async def connect(
        cls, url: str, path: str, query: Mapping[str, str], token: str | None = None, ssl: SSLContext | bool = True
    ) -> Self:
        """Raises RefusedError, UnreachableError, and ConfigError for a token that no header can carry."""
        headers, connector = {"Authorization": f"Bearer {parse_token(token)}"} if token else {}, _Connector()
        http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=UPGRADE_S),
            middlewares=(_reason_of_a_refusal,),
            headers=headers,
        )
        try:
            async with AsyncExitStack() as failure:
                failure.push_async_callback(_cut, connector, http)
                target = server_url(url, path).with_query(query)
                socket = await http.ws_connect(target, ssl=ssl, timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S))
                failure.pop_all()
            return cls(http, socket, connector)
        except aiohttp.WSServerHandshakeError as error:
            raise UnreachableError(
                f"{url} answered {error.status} instead of opening a WebSocket. This is not a pplex-export server. "
                "Give the address that it prints when it starts."
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(_unreachable(url, error)) from error

    async def next_message(self) -> Message:
        """The server's next message. Raises ClosedError if the server closed, LostError if the connection was lost."""
        try:
            message = await self._socket.receive(timeout=self.silence_s)
        except TimeoutError as error:
            raise LostError(f"The connection is lost: the server sent nothing for {self.silence_s:g} s.") from error
        if message.type is WSMsgType.CLOSE and message.data == Close.NOT_READING:
            raise LostError("The server closed the connection, because this client did not read in time.")
        if message.type is WSMsgType.CLOSE:
            raise ClosedError(message.data, self.complaint or (message.extra or "").strip())
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            raise LostError("The connection to the server is lost.")
        data: Message = message.data
        return data

    async def send(self, message: Message) -> None:
        """Raises LostError."""
        try:
            await (self._socket.send_str(message) if isinstance(message, str) else self._socket.send_bytes(message))
        except (aiohttp.ClientError, OSError) as error:
            raise LostError("The connection to the server is lost.") from error

    async def close(self) -> None:
        """End the conversation."""
        await self._socket.close()
        await self.abandon()

    async def abandon(self) -> None:
        """Cut the connection without a close message, so that the conversation can be resumed."""
        self._connector.abort()
        await self._socket.close()  # sends nothing: the connection is gone
        await _cut(self._connector, self._http)


class _Connector(aiohttp.TCPConnector):
    """Keeps its last connection, which aiohttp forgets while a TLS connection is still closing."""

    _last: asyncio.Transport | None = None

    async def connect(self, *args: Any, **settings: Any) -> Connection:
        connection = await super().connect(*args, **settings)
        self._last = connection.transport
        return connection

    def abort(self) -> None:
        """Cut the connection at once, whatever is still to be sent."""
        if self._last is not None:
            self._last.abort()


async def _cut(connector: _Connector, http: aiohttp.ClientSession) -> None:
    """Close the session and its connection, before the loop can end."""
    connector.abort()
    await http.close()
    await asyncio.sleep(0)  # the connection closes its socket in the loop's next round


async def _reason_of_a_refusal(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Raises RefusedError for a response of at least 400: aiohttp would not read its body."""
    response = await handler(request)
    if response.status < HTTPStatus.BAD_REQUEST:
        return response
    reason = _sentence((await response.text(errors="replace")).strip()) or response.reason or ""
    wait = response.headers.get("Retry-After", "")
    raise RefusedError(response.status, reason, float(wait) if wait.isascii() and wait.isdigit() else None)


def _sentence(body: str) -> str:
    """The sentence in an answer: the whole of it, or in OpenAI's protocols the message in its JSON."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body


def server_url(url: str, path: str) -> URL:
    """The URL of `path` on the server at `url`, which may be the WebSocket's. Raises UnreachableError for an invalid URL."""
    try:
        target = URL(url)
    except ValueError as error:
        raise UnreachableError(f"{url} is not a URL: {error}. Give one such as ws://localhost:8998.") from error
    if target.scheme not in {"http", "https", "ws", "wss"} or not target.host:
        raise UnreachableError(f"{url} is not the address of a server. Give one such as ws://localhost:8998.")
    return target.with_path(target.path.rstrip("/").removesuffix(PATH).removesuffix(path) + path)


def _unreachable(url: str, error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"{url} has a certificate that cannot be verified ({error.certificate_error}).\n"
            "If it is your own, pass ssl=False, or --insecure on the command line."
        )
    reason = str(error) or "no answer in time"
    return f"{url} cannot be reached: {reason}. Is the server running? pplex-export serve BUNDLE"
