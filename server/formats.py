"""Formats of audio on the wire: Opus in Ogg pages, or raw samples. Each connection has a receiver and a sender.

Called by `server.chat_protocol`.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import AudioError
from pplex.runtime.samples import check_samples
from pplex.server.foreign_audio import LONGEST_MARK, container_of
from pplex.server.opus import OpusReceiver, OpusSender
from pplex.server.pcm16 import quantized, scaled
from pplex.server.wire import Close, ProtocolError, Received

RAW = {"s16": "<i2", "f32": "<f4"}  # numpy's type


class Receiver(Protocol):
    """Converts a client's audio messages to samples. `bad` counts damaged parts."""

    @property
    def bad(self) -> int: ...

    def push(self, payload: bytes, limit: int) -> Received:
        """The samples that a message completes, at most the newest `limit`. Raises ProtocolError if it is not audio."""


class Sender(Protocol):
    """Converts frames to payloads of audio messages."""

    def frame(self, pcm: Pcm) -> list[bytes]:
        """One frame [1920] float32."""


class RawReceiver:
    """Little-endian samples. Samples of `f32` follow the rule of `Session.step`."""

    bad = 0  # bad audio is refused instead

    def __init__(self, name: str):
        self.name, self._dtype = name, np.dtype(RAW[name])
        self._beginning = b""

    def push(self, payload: bytes, limit: int) -> Received:
        container = None
        if len(self._beginning) < LONGEST_MARK:  # collects the stream's first bytes from any number of messages
            self._beginning += payload[:LONGEST_MARK]
            container = container_of(self._beginning)
        if container is not None:
            raise ProtocolError(
                Close.INVALID,
                f"The audio is {container}, but audio={self.name} means samples without a container. "
                "Send samples, or Opus in Ogg pages with audio=opus.",
            )
        if len(payload) % self._dtype.itemsize:
            raise ProtocolError(
                Close.INVALID,
                f"{len(payload)} bytes are not a whole number of {self.name} samples of {self._dtype.itemsize} bytes.",
            )
        samples = np.frombuffer(payload, self._dtype)
        skipped = max(0, len(samples) - limit)
        return Received(self._checked(samples[skipped:]), skipped, len(samples) > 0)

    def _checked(self, samples: npt.NDArray[Any]) -> Pcm:
        if self._dtype.kind == "i":  # any 16 bits are a sample
            return scaled(samples)
        pcm = samples.astype(np.float32)
        try:
            check_samples(pcm, "The audio")
        except AudioError as error:
            raise ProtocolError(Close.INVALID, str(error)) from error
        return pcm


class RawSender:
    """Little-endian samples, one message for each frame."""

    def __init__(self, name: str):
        self._dtype = np.dtype(RAW[name])

    def frame(self, pcm: Pcm) -> list[bytes]:
        samples = np.nan_to_num(np.clip(pcm, -1, 1)) if self._dtype.kind == "f" else quantized(pcm)
        return [samples.astype(self._dtype).tobytes()]


def make_receiver(audio: str) -> Receiver:
    """The receiver for the named format."""
    return RawReceiver(audio) if audio in RAW else OpusReceiver()


def make_sender(audio: str) -> Sender:
    """The sender for the named format."""
    return RawSender(audio) if audio in RAW else OpusSender()
