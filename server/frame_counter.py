"""Counts the frames in the replies to a load test, and knows their size in each format. No I/O.

Called by the protocols of the load test, and by `server.speakers`.
"""

from collections.abc import Callable

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.ogg import OpusHead, PageReader, packet_samples
from pplex.server.sounds import BY_LABEL
from pplex.server.wire import FRAME_SIZE

OPUS_RATE_HZ = 48_000
FRAME_BYTES = {"s16": 2 * FRAME_SIZE, "f32": 4 * FRAME_SIZE} | {
    label: FRAME_SIZE * sound.rate_hz // SAMPLE_RATE_HZ * sound.sample_bytes for label, sound in BY_LABEL.items()
}


class FrameCounter:
    """Counts the whole frames in the payloads of one connection; for Opus, from the headers of its packets."""

    def __init__(self, audio: str):
        self._size_of = _opus_samples() if audio == "opus" else len
        self._frame_size = FRAME_SIZE if audio == "opus" else FRAME_BYTES[audio]
        self._size = 0

    def push(self, payload: bytes) -> int:
        """The number of frames that `payload` completes."""
        before = self._size // self._frame_size
        self._size += self._size_of(payload)
        return self._size // self._frame_size - before


def one_sample(audio: str) -> bytes:
    """A sample of silence in a format of `server.sounds`."""
    sound = BY_LABEL[audio]
    return sound.silence(sound.sample_bytes)


def _opus_samples() -> Callable[[bytes], int]:
    reader = PageReader()

    def samples_in(payload: bytes) -> int:
        packets = (part for part in reader.push(payload) if not isinstance(part, OpusHead))
        return sum(map(packet_samples, packets)) * SAMPLE_RATE_HZ // OPUS_RATE_HZ

    return samples_in
