"""A WebSocket connection from a bridge to a server, in the client's name, behind Serve's proxy in Python.

That proxy sends messages instead of bytes. Called by `scale.bridge`.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.typing import Subprotocol

from pplex.scale.wires import Unreachable, plug

MAX_QUEUE = 1  # messages
LOST = 1006
HANDSHAKE = {b"host", b"connection", b"upgrade"}  # and sec-websocket-*: a new handshake has its own


class Refused(Exception):
    """The server's answer instead of an upgrade."""

    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: bytes):
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


async def open_tunnel(address: str, scope: Any) -> ClientConnection:
    """Connect to the server at `address` (host:port) with an ASGI scope's path, query and headers.

    Raises Refused or Unreachable.
    """
    headers = {name: value for name, value in scope["headers"]}
    host = headers.get(b"host", address.encode()).decode("latin-1")
    path = scope["path"] + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
    connected = await plug(address)
    try:
        return await connect(
            f"ws://{host}{path}",
            sock=connected,
            additional_headers=[
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in scope["headers"]
                if name not in HANDSHAKE and not name.startswith(b"sec-websocket-")
            ],
            subprotocols=[Subprotocol(name) for name in scope["subprotocols"]] or None,
            user_agent_header=None,
            compression=None,
            proxy=None,
            ping_interval=None,  # the server pings, and Serve pings the client
            open_timeout=None,
            close_timeout=2.0,
            max_size=None,
            max_queue=MAX_QUEUE,
        )
    except InvalidStatus as error:
        answer = error.response
        raise Refused(answer.status_code, list(answer.headers.raw_items()), bytes(answer.body or b"")) from error
    except InvalidURI as error:
        raise Refused(400, [], b"This request has no valid Host header.\n") from error
    except (OSError, WebSocketException, EOFError) as error:
        raise Unreachable(address) from error


async def leave(tunnel: ClientConnection, code: int) -> None:
    """End the connection as the client ended its own: with its close code, or by a break."""
    if code == LOST:
        tunnel.transport.abort()
        return
    with suppress(ConnectionClosed, OSError):
        await tunnel.close(code if code != 1005 else 1000)
