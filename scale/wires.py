"""Connections to a server, and the passing on of bytes. Called by `scale.sockets` and `scale.tunnel`."""

import asyncio
import socket
from typing import cast

CONNECT_S = 3.0  # a replica on a lost machine does not answer
RECEIVE_BUFFER = 16384  # bytes: replies that a client does not read wait in the server, which has a limit for them
SEND_BUFFER = 32768  # bytes that the kernel keeps for a client


class Unreachable(Exception):
    """The server did not accept a connection."""


async def plug(address: str) -> socket.socket:
    """A socket that is connected to the server at `address` (host:port). Raises Unreachable."""
    host, _, port = address.rpartition(":")
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setblocking(False)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(found, (host.strip("[]"), int(port)))
    except OSError as error:  # also a timeout
        found.close()
        raise Unreachable(address) from error
    return found


class Wire(asyncio.Protocol):
    """One of two connections that belong together: what comes from it goes to the other."""

    def __init__(self, other: asyncio.Transport):
        self._other = other
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.transport.set_write_buffer_limits(high=SEND_BUFFER // 4)
        plain: socket.socket = self.transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def data_received(self, data: bytes) -> None:
        self._other.write(data)

    def pause_writing(self) -> None:
        self._other.pause_reading()

    def resume_writing(self) -> None:
        self._other.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._other.abort()
        self._other.close()
