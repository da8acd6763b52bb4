"""Audio as plain codes without a header: 16-bit PCM at 24 or 16 kHz, and G.711 at 8 kHz, to and from the model's 24 kHz.

Called by the protocols of JSON. No I/O. Each direction of a connection has its own converter, because it has a state.
"""

import binascii
from dataclasses import dataclass

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.g711 import A_LAW, G711, MU_LAW
from pplex.server.pcm16 import PcmBytes, quantized
from pplex.server.resampling import Resampler
from pplex.server.wire import Received


@dataclass(frozen=True)
class Sound:
    """A format. law: of G.711, or None for 16-bit little-endian PCM."""

    name: str
    rate_hz: int
    law: G711 | None = None

    @property
    def label(self) -> str:
        """Name and rate, for the log."""
        return f"{self.name.removeprefix('audio/')}-{self.rate_hz // 1000}k"

    @property
    def sample_bytes(self) -> int:
        return 1 if self.law else 2

    def samples(self, nbytes: int) -> float:
        """How many samples at 24 kHz these bytes become."""
        return nbytes * SAMPLE_RATE_HZ / (self.rate_hz * self.sample_bytes)

    def silence(self, nbytes: int) -> bytes:
        """As many bytes of silence."""
        return bytes([self.law.silence if self.law else 0]) * nbytes


TELEPHONE = Sound("audio/pcmu", 8_000, MU_LAW)
SOUNDS = (
    Sound("audio/pcm", 24_000),
    Sound("audio/pcm", 16_000),
    TELEPHONE,
    Sound("audio/pcma", 8_000, A_LAW),
)
BY_LABEL = {sound.label: sound for sound in SOUNDS}


def unpacked(text: object) -> bytes | None:
    """The bytes in a value of JSON, which should be base64; None if it is not."""
    try:
        return binascii.a2b_base64(text, strict_mode=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None


class SoundReceiver:
    """Converts a client's bytes, cut anywhere, to samples at 24 kHz."""

    def __init__(self, sound: Sound):
        self._sound, self._bytes = sound, PcmBytes()
        self._resampler = None if sound.rate_hz == SAMPLE_RATE_HZ else Resampler(sound.rate_hz, SAMPLE_RATE_HZ)

    def push(self, payload: bytes, limit: int) -> Received:
        """The samples that these bytes complete, at most the newest `limit`."""
        law = self._sound.law
        pcm = law.decode(payload) if law else self._bytes.push(payload)
        most = limit * self._sound.rate_hz // SAMPLE_RATE_HZ
        skipped = max(0, len(pcm) - most)
        heard = pcm[skipped:]
        if self._resampler is not None:
            heard = self._resampler.process(heard)[:limit]  # a waiting block may add a few samples
        return Received(heard, skipped * SAMPLE_RATE_HZ // self._sound.rate_hz, len(pcm) > 0)


class SoundSender:
    """Converts frames at 24 kHz to a client's bytes."""

    def __init__(self, sound: Sound):
        self._law = sound.law
        self._resampler = None if sound.rate_hz == SAMPLE_RATE_HZ else Resampler(SAMPLE_RATE_HZ, sound.rate_hz)

    def frame(self, pcm: Pcm) -> bytes:
        """One frame [1920] float32."""
        if self._resampler is not None:
            pcm = self._resampler.process(pcm)
        return self._law.encode(pcm) if self._law else quantized(pcm).astype("<i2").tobytes()
