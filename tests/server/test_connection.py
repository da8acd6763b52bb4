"""A connection, without a socket."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import numpy as np
from aiohttp import web

from pplex.server.connection import Connection
from pplex.server.limits import Limits
from pplex.server.metrics import Metrics
from pplex.server.opus import Received
from pplex.server.request import ChatRequest
from pplex.server.worker import Work, Worker


class ByHand:
    """A worker that works when it is told to."""

    def __init__(self) -> None:
        self.waiting: deque[Work] = deque()
        self.put: Callable[[Work], None] = self.waiting.append

    def run(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


def test_many_messages_at_once_do_not_keep_others_from_being_heard() -> None:
    heard: list[tuple[str, float]] = []

    async def listen() -> None:
        hearing, metrics = ByHand(), Metrics()

        def connection() -> Connection:
            ws = cast(web.WebSocketResponse, None)
            return Connection(
                ws, cast(asyncio.Transport, None), ChatRequest(audio="f32"), cast(Worker, hearing), Limits(), metrics
            )

        def say(connection: Connection, name: str, value: float) -> None:
            def hear(received: Received, arrived_s: float) -> None:
                heard.append((name, float(received.pcm[0])))

            connection._take(b"\1" + np.float32([value]).tobytes(), lambda: 1, hear)

        flood, other = connection(), connection()
        for value in (0.25, 0.5, 0.75):
            say(flood, "flood", value)
        say(other, "other", 0.5)
        hearing.run()
        say(flood, "flood", 1.0)
        hearing.run()

    asyncio.run(listen())
    assert heard == [("flood", 0.25), ("other", 0.5), ("flood", 0.5), ("flood", 0.75), ("flood", 1.0)]
