"""The hearing thread, without a socket."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.server.chat_protocol import ChatProtocol
from pplex.server.chat_request import ChatRequest
from pplex.server.frame_counter import FRAME_BYTES
from pplex.server.hearing import IncomingAudio
from pplex.server.inbox import Inbox
from pplex.server.limits import Limits
from pplex.server.live_protocol import LiveProtocol, LiveTerms
from pplex.server.metrics import Metrics
from pplex.server.realtime_protocol import RealtimeProtocol, RealtimeTerms
from pplex.server.scheduler import Scheduler, now_s
from pplex.server.sounds import BY_LABEL
from pplex.server.twilio_protocol import TwilioProtocol
from pplex.server.twilio_start import TwilioTerms
from pplex.server.wire import WireProtocol
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


# Plain samples are collected to frames.


def plain(audio: str) -> WireProtocol:
    """A protocol whose client sends this format."""
    if audio == "s16":
        return ChatProtocol(ChatRequest(audio=audio))
    if audio == "pcm-24k":
        return RealtimeProtocol(RealtimeTerms())
    if audio == "pcmu-8k":
        return TwilioProtocol(TwilioTerms({}))
    sound, wire = BY_LABEL[audio], LiveProtocol(LiveTerms(takes_prompt=False))
    form = {"type": sound.name, "rate": sound.rate_hz}
    wire.parse(json.dumps({"type": "session.start", "session": {"model": "m", "audio": {"format": form}}}))
    return wire


PLAIN = ("s16", *BY_LABEL)


def collecting(audio: str) -> tuple[IncomingAudio, Inbox, ByHand]:
    hearing, inbox = ByHand(), Inbox(1920, backlog=1000)
    scheduler = cast(Scheduler, SimpleNamespace(wake=lambda: None))
    limits = Limits(samples=1e9)
    incoming = IncomingAudio(
        plain(audio), inbox, scheduler, cast(Worker, hearing), limits, Metrics(), lambda error: None, lambda: True
    )
    inbox.start()
    return incoming, inbox, hearing


def frames_in(inbox: Inbox) -> int:
    """The number of whole frames; takes them out."""
    return sum(1 for _ in iter(inbox.pop, None))


@pytest.mark.parametrize("audio", PLAIN)
def test_messages_of_20_ms_wake_the_thread_once_a_frame(audio: str) -> None:
    async def listen() -> None:
        incoming, inbox, hearing = collecting(audio)
        wakes = 0
        for message in range(1, 41):
            incoming.put(bytes(FRAME_BYTES[audio] // 4), now_s())
            wakes += len(hearing.waiting)
            hearing.run()
            assert frames_in(inbox) == (message % 4 == 0)
        assert wakes <= 11  # and once for the first message of chat, which may be a container

    asyncio.run(listen())


@pytest.mark.parametrize("audio", PLAIN)
@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5000), st.sampled_from(["works", "waits", "silence"])), max_size=30))
def test_no_frame_waits_for_the_next_message(audio: str, steps: list[tuple[int, str]]) -> None:
    """However the audio is divided, and whether or not the thread is at work when a message comes."""

    async def listen() -> None:
        incoming, inbox, hearing = collecting(audio)
        step = 2 if audio == "s16" else 1  # chat refuses half a sample
        sent = silent = heard = 0
        for nbytes, then in steps:
            incoming.put(bytes(nbytes * step), now_s())
            sent += nbytes * step
            if then == "silence":
                incoming.put_silence(now_s())
                silent += 1
            if then != "waits":
                hearing.run()
                heard += frames_in(inbox)
                # The resampler keeps an input, and a byte may be half a sample: together less than a sample of 16 kHz.
                assert heard in (sent // FRAME_BYTES[audio] + silent, (sent - 3) // FRAME_BYTES[audio] + silent)

    asyncio.run(listen())
