"""Limits connections in front of the HTTP server: their number, the time for a first request, and the bytes each may send.

aiohttp has no such limits. Called by `server.app`.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from pplex.server.limits import Bucket, Limits
from pplex.server.metrics import Metrics


class Gate:
    """Makes the protocols of an asyncio server: a `_Visitor` in front of each protocol that `make` returns."""

    def __init__(self, make: Callable[[], asyncio.Protocol], most: int, limits: Limits, metrics: Metrics):
        self.make, self.most, self.limits, self.metrics = make, most, limits, metrics
        self._open = dict[asyncio.BaseTransport, _Visitor]()

    def __call__(self) -> asyncio.Protocol:
        return _Visitor(self)

    def passed(self, transport: asyncio.BaseTransport | None) -> None:
        """A connection's request has arrived: its deadline is over."""
        if transport in self._open:
            self._open[transport].pass_by()

    def credit(self, transport: asyncio.BaseTransport, seconds: float) -> None:
        """A connection may send what it has held back for `seconds`."""
        if transport in self._open:
            self._open[transport].bytes.credit(seconds)

    def enter(self, transport: asyncio.BaseTransport, visitor: "_Visitor") -> bool:
        if len(self._open) >= self.most:
            self.metrics.cut.labels("full").inc()
            return False
        self._open[transport] = visitor
        self.metrics.connections.set(len(self._open))
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        self._open.pop(transport, None)
        self.metrics.connections.set(len(self._open))


class _Visitor(asyncio.Protocol):
    """One connection. If it is admitted, its data goes to the protocol behind the gate, up to the limits."""

    def __init__(self, gate: Gate):
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self.bytes = Bucket(gate.limits.wire_bytes, gate.limits.wire_bytes_per_s, self._loop.time())
        self._behind: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        if not self._gate.enter(transport, self):
            transport.abort()
            return
        self._transport, self._behind = transport, self._gate.make()
        self._deadline = self._loop.call_later(self._gate.limits.header_s, self._cut, "slow")
        self._behind.connection_made(transport)

    def _cut(self, reason: str) -> None:
        self._gate.metrics.cut.labels(reason).inc()
        if self._transport is not None:
            self._transport.abort()

    def pass_by(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def data_received(self, data: bytes) -> None:
        if self._behind is None:
            return
        if self.bytes.take(len(data), self._loop.time()):
            self._behind.data_received(data)
        else:
            self._cut("flood")

    def eof_received(self) -> bool | None:
        return self._behind.eof_received() if self._behind is not None else None

    def pause_writing(self) -> None:
        if self._behind is not None:
            self._behind.pause_writing()

    def resume_writing(self) -> None:
        if self._behind is not None:
            self._behind.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self.pass_by()
        if self._behind is not None and self._transport is not None:
            self._gate.leave(self._transport)
            self._behind.connection_lost(error)
