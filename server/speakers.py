"""The audio that the sessions of a load test send, and a counter of the frames in their replies. Called by `server.load`.

A recording is encoded only once; each Opus session only makes pages from its packets.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import frames
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.wire import FRAME_SIZE

RAW_SAMPLES = 480  # 20 ms: a message of s16 or f32
PAGE_PACKETS = 2  # a message of Opus, as the original web client sends it
WIDTH = {"s16": 2, "f32": 4}  # bytes per sample
OPUS_RATE_HZ = 48_000

Message = tuple[bytes, int]  # the payload, and its number of samples


class Speaker(Protocol):
    """A recording that is played in a loop."""

    def messages(self, start: float, serial: int) -> Iterator[Message]:
        """Endless messages. `start` in [0, 1): the position in the recording where they begin."""


def make_speaker(audio: str, pcm: Pcm) -> Speaker:
    """The speaker of `pcm` [samples] at 24 kHz, in the protocol's format `audio`."""
    return OpusSpeaker(pcm) if audio == "opus" else RawSpeaker(audio, pcm)


class RawSpeaker:
    def __init__(self, audio: str, pcm: Pcm):
        blocks = frames(np.clip(pcm, -1, 1), RAW_SAMPLES)
        samples = np.rint(blocks * 32767).astype("<i2") if audio == "s16" else blocks.astype("<f4")
        self._payloads = [block.tobytes() for block in samples]

    def messages(self, start: float, serial: int) -> Iterator[Message]:
        at = int(start * len(self._payloads))
        while True:
            yield self._payloads[at], RAW_SAMPLES
            at = (at + 1) % len(self._payloads)


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


class FrameCounter:
    """Counts the whole frames in the payloads of one connection; for Opus, from the headers of its packets."""

    def __init__(self, audio: str):
        self._samples_in = _opus_samples() if audio == "opus" else partial(_raw_samples, WIDTH[audio])
        self._samples = 0

    def push(self, payload: bytes) -> int:
        """The number of frames that `payload` completes."""
        before = self._samples // FRAME_SIZE
        self._samples += self._samples_in(payload)
        return self._samples // FRAME_SIZE - before


def _raw_samples(width: int, payload: bytes) -> int:
    return len(payload) // width


def _opus_samples() -> Callable[[bytes], int]:
    from pplex.server.ogg import OpusHead, PageReader, packet_samples

    reader = PageReader()

    def samples_in(payload: bytes) -> int:
        packets = (part for part in reader.push(payload) if not isinstance(part, OpusHead))
        return sum(map(packet_samples, packets)) * SAMPLE_RATE_HZ // OPUS_RATE_HZ

    return samples_in
