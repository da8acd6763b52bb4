"""The user's side of an Ogg Opus stream: packets of 20 ms, and pages that begin and end with them.

Called by `server.client` for audio="opus", and by `server.load`.
"""

import random
from collections.abc import Iterable, Iterator

import av
import numpy as np

from pplex.runtime.audio import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.ogg import OpusHead, PageWriter, tags_packet
from pplex.server.opus import OpusReceiver

PACKET_SAMPLES = 480  # 20 ms at 24 kHz
OPUS_SAMPLES = 2 * PACKET_SAMPLES  # of a packet, as Opus counts: at 48 kHz
PAGE_PACKETS = 4  # a frame
BITS_PER_SECOND = 48_000


class PacketEncoder:
    """Samples to packets; what does not fill one waits for more."""

    def __init__(self) -> None:
        self._encoder = av.CodecContext.create("libopus", "w")
        self._encoder.sample_rate, self._encoder.layout, self._encoder.format = SAMPLE_RATE_HZ, "mono", "flt"
        self._encoder.bit_rate = BITS_PER_SECOND
        self._encoder.options = {"application": "lowdelay", "compression_level": "5", "frame_duration": "20"}
        self._encoder.open()
        self._rest = np.zeros(0, np.float32)

    def push(self, pcm: Pcm) -> list[bytes]:
        pcm = np.concatenate([self._rest, np.clip(pcm, -1, 1)])
        whole = len(pcm) // PACKET_SAMPLES * PACKET_SAMPLES
        self._rest = pcm[whole:]
        return [self._packet(pcm[start : start + PACKET_SAMPLES]) for start in range(0, whole, PACKET_SAMPLES)]

    def _packet(self, pcm: Pcm) -> bytes:
        frame = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        (packet,) = self._encoder.encode(frame)
        return bytes(packet)


class PacketPages:
    """Packets of 20 ms to pages of one stream.

    Its head declares no pre-skip: a server cuts frames where the samples that it keeps begin, and each frame would
    end a little after a packet does and wait for the next page. The encoder's delay of 2.5 ms is heard as silence.
    """

    def __init__(self, serial: int):
        self._pages = PageWriter(serial)

    def headers(self) -> list[bytes]:
        return [self._pages.page([OpusHead(0, SAMPLE_RATE_HZ).packet()]), self._pages.page([tags_packet()])]

    def page(self, packets: list[bytes]) -> bytes:
        return self._pages.page(packets, len(packets) * OPUS_SAMPLES)


class OpusCodec:
    """Samples to pages and back, for one connection."""

    def __init__(self, frame_size: int):
        self._encoder, self._pages, self._begun = PacketEncoder(), PacketPages(random.getrandbits(32)), False
        self._receiver = OpusReceiver()
        self._frame_size = frame_size

    def encode(self, pcm: Pcm) -> Iterator[bytes]:
        """Payloads of messages, the first two the headers."""
        if not self._begun:
            self._begun = True
            yield from self._pages.headers()
        packets = self._encoder.push(pcm)
        for start in range(0, len(packets), PAGE_PACKETS):
            yield self._pages.page(packets[start : start + PAGE_PACKETS])

    def decode(self, payload: bytes) -> Iterable[Pcm]:
        """Frames [frame_size], one a page: the first, which lacks the encoder's delay, begins with that much silence."""
        pcm = self._receiver.push(payload, limit=SAMPLE_RATE_HZ).pcm
        return list(np.pad(pcm, (-len(pcm) % self._frame_size, 0)).reshape(-1, self._frame_size))
