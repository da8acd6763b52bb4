"""The client's side of an Ogg Opus stream: called by `server.client` for audio="opus"."""

from collections.abc import Iterable, Iterator

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.server.opus import PACKET_SAMPLES, SAMPLE_RATE_HZ, OpusReceiver, PacketEncoder, PacketPages

PAGE_PACKETS = 4  # a frame


class OpusCodec:
    """Converts samples to pages and back, for one connection."""

    def __init__(self, frame_size: int):
        self._encoder, self._receiver, self._frame_size = PacketEncoder(), OpusReceiver(), frame_size
        self._pages = PacketPages(self._encoder.head)
        self._headers = self._pages.headers()
        self._rest = np.zeros(0, np.float32)  # samples that do not fill a packet yet

    def encode(self, pcm: Pcm) -> Iterator[bytes]:
        """Payloads of messages. The first two are the headers."""
        pcm = np.concatenate([self._rest, pcm])
        whole = len(pcm) // PACKET_SAMPLES * PACKET_SAMPLES
        self._rest = pcm[whole:]
        headers, self._headers = self._headers, []
        yield from headers
        packets = self._encoder.push(pcm[:whole]) if whole else []
        for start in range(0, len(packets), PAGE_PACKETS):
            yield self._pages.page(packets[start : start + PAGE_PACKETS])

    def decode(self, payload: bytes) -> Iterable[Pcm]:
        """Whole frames [frame_size]: a page of the server holds one frame."""
        pcm = self._receiver.push(payload, limit=SAMPLE_RATE_HZ).pcm
        return list(pcm[: len(pcm) // self._frame_size * self._frame_size].reshape(-1, self._frame_size))
