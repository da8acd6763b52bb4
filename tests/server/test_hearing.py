"""The hearing thread, without a socket."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np

from pplex.server.chat_protocol import ChatProtocol
from pplex.server.chat_request import ChatRequest
from pplex.server.hearing import IncomingAudio
from pplex.server.inbox import Inbox
from pplex.server.limits import Limits
from pplex.server.metrics import Metrics
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


def incoming_audio(hearing: Worker, wake: Callable[[], None]) -> IncomingAudio:
    """Audio of an admitted client, whose frames have one sample."""
    wire, scheduler = ChatProtocol(ChatRequest(audio="f32")), cast(Scheduler, SimpleNamespace(wake=wake))
    limits = Limits(samples=1e9)
    return IncomingAudio(wire, Inbox(1), scheduler, hearing, limits, Metrics(), lambda error: None, lambda: True)


def say(incoming: IncomingAudio) -> None:
    incoming.put(np.float32([0.5]).tobytes(), now_s())


def test_a_burst_of_messages_does_not_block_other_clients() -> None:
    heard: list[str] = []

    async def listen() -> None:
        hearing = ByHand()

        flood, other = (
            incoming_audio(cast(Worker, hearing), partial(heard.append, name)) for name in ("flood", "other")
        )
        for _ in range(3):
            say(flood)
        say(other)
        hearing.run()
        say(flood)
        hearing.run()

    asyncio.run(listen())
    assert heard == ["flood", "other", "flood", "flood", "flood"]


def test_a_payload_that_arrives_while_another_is_decoded_is_decoded_once() -> None:
    """The hearing thread finishes a payload just after the event loop has added the next one."""
    hearing, heard, threads = ByHand(), list[None](), list[threading.Thread]()

    class Interrupted(deque[tuple[bytes, float]]):
        def append(self, payload: tuple[bytes, float]) -> None:
            super().append(payload)
            threads.append(threading.Thread(target=hearing.waiting.popleft()))
            threads[0].start()
            threads[0].join(0.2)  # it ends now, or waits for the event loop

    async def listen() -> None:
        incoming = incoming_audio(cast(Worker, hearing), partial(heard.append, None))
        say(incoming)
        incoming._payloads = Interrupted(incoming._payloads)
        say(incoming)
        threads[0].join()
        hearing.run()

    asyncio.run(listen())
    assert len(heard) == 2
