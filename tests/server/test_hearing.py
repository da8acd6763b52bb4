"""The hearing thread, without a socket."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np

from pplex.server.chat_protocol import ChatProtocol
from pplex.server.hearing import IncomingAudio
from pplex.server.inbox import Inbox
from pplex.server.limits import Limits
from pplex.server.metrics import Metrics
from pplex.server.request import ChatRequest
from pplex.server.scheduler import Scheduler, now_s
from pplex.server.worker import Work, Worker


class ByHand:
    """A worker that runs when the test tells it to."""

    def __init__(self) -> None:
        self.waiting: deque[Work] = deque()
        self.put: Callable[[Work], None] = self.waiting.append

    def run(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


def test_a_burst_of_messages_does_not_block_other_clients() -> None:
    heard: list[str] = []

    async def listen() -> None:
        hearing = ByHand()

        def incoming(name: str) -> IncomingAudio:
            scheduler = cast(Scheduler, SimpleNamespace(wake=lambda: heard.append(name)))
            wire, inbox, limits = ChatProtocol(ChatRequest(audio="f32")), Inbox(1), Limits()
            return IncomingAudio(
                wire, inbox, scheduler, cast(Worker, hearing), limits, Metrics(), lambda error: None, lambda: True
            )

        def say(incoming: IncomingAudio) -> None:
            incoming.put(np.float32([0.5]).tobytes(), now_s())  # a frame, where frames have one sample

        flood, other = incoming("flood"), incoming("other")
        for _ in range(3):
            say(flood)
        say(other)
        hearing.run()
        say(flood)
        hearing.run()

    asyncio.run(listen())
    assert heard == ["flood", "other", "flood", "flood", "flood"]
