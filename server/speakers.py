"""The audio that the sessions of a load test send. Called by `server.load`.

A recording is encoded only once; each Opus session only makes pages from its packets.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import frames
from pplex.server.frame_counter import FRAME_BYTES
from pplex.server.pcm16 import quantized
from pplex.server.sounds import BY_LABEL, SoundSender
from pplex.server.wire import FRAME_SIZE

RAW_SAMPLES = 480  # 20 ms: a message of any format but Opus
PAGE_PACKETS = 2  # a message of Opus, as the original web client sends it

Message = tuple[bytes, int]  # the payload, and its number of samples


class Speaker(Protocol):
    """A recording that is played in a loop."""

    def messages(self, start: float, serial: int) -> Iterator[Message]:
        """Endless messages. `start` in [0, 1): the position in the recording where they begin."""


def make_speaker(audio: str, pcm: Pcm) -> Speaker:
    """The speaker of `pcm` [samples] at 24 kHz, in the format `audio`."""
    return OpusSpeaker(pcm) if audio == "opus" else RawSpeaker(audio, pcm)


class RawSpeaker:
    """Samples or codes without a container, in messages of 20 ms."""

    def __init__(self, audio: str, pcm: Pcm):
        codes = _codes(audio, frames(np.clip(pcm, -1, 1), RAW_SAMPLES).reshape(-1))
        size = FRAME_BYTES[audio] * RAW_SAMPLES // FRAME_SIZE
        self._payloads = [codes[start : start + size] for start in range(0, len(codes), size)]

    def messages(self, start: float, serial: int) -> Iterator[Message]:
        at = int(start * len(self._payloads))
        while True:
            yield self._payloads[at], RAW_SAMPLES
            at = (at + 1) % len(self._payloads)


def _codes(audio: str, pcm: Pcm) -> bytes:
    if audio in BY_LABEL:
        return SoundSender(BY_LABEL[audio]).frame(pcm)
    return (quantized(pcm).astype("<i2") if audio == "s16" else pcm.astype("<f4")).tobytes()


class OpusSpeaker:
    def __init__(self, pcm: Pcm):
        from pplex.server.opus import PACKET_SAMPLES, PacketEncoder  # here, because it imports PyAV

        message_samples = PAGE_PACKETS * PACKET_SAMPLES
        encoder = PacketEncoder()
        packets, self._head = encoder.push(frames(pcm, message_samples).reshape(-1)), encoder.head
        self._pairs = [packets[i : i + PAGE_PACKETS] for i in range(0, len(packets), PAGE_PACKETS)]
        self._samples = message_samples

    def messages(self, start: float, serial: int) -> Iterator[Message]:
        from pplex.server.opus import PacketPages

        pages = PacketPages(self._head, serial)
        yield from ((header, 0) for header in pages.headers())
        at = int(start * len(self._pairs))
        while True:
            yield pages.page(self._pairs[at]), self._samples
            at = (at + 1) % len(self._pairs)
