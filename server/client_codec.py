"""Converts the client's samples to payloads of audio messages and back. Called by `server.client`."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from pplex.runtime.arrays import Pcm

MAX_SAMPLES = 12_000  # in one message: 48 kB of f32; the server accepts 64 KiB


class Codec(Protocol):
    """Converts samples to payloads of audio messages and back, for one connection."""

    def encode(self, pcm: Pcm) -> Iterable[bytes]: ...

    def decode(self, payload: bytes) -> Iterable[Pcm]:
        """Whole frames [1920]."""


class RawCodec:
    """`s16` and `f32`."""

    def __init__(self, audio: str, frame_size: int):
        self._dtype: np.dtype[Any] = np.dtype("<i2" if audio == "s16" else "<f4")
        self._scale = 32768 if audio == "s16" else 1
        self._frame_size = frame_size

    def encode(self, pcm: Pcm) -> Iterable[bytes]:
        if self._dtype.kind == "i":
            pcm = np.clip(np.rint(pcm * self._scale), -self._scale, self._scale - 1)
        for start in range(0, len(pcm), MAX_SAMPLES):
            yield pcm[start : start + MAX_SAMPLES].astype(self._dtype).tobytes()

    def decode(self, payload: bytes) -> Iterable[Pcm]:
        pcm = np.frombuffer(payload, self._dtype).astype(np.float32) / self._scale
        return list(pcm.reshape(-1, self._frame_size))


def make_codec(audio: str, frame_size: int) -> Codec:
    if audio != "opus":
        return RawCodec(audio, frame_size)
    from pplex.server.client_opus import OpusCodec  # here, because it imports PyAV

    return OpusCodec(frame_size)
