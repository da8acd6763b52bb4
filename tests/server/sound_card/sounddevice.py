"""Replaces the package of this name, and so the sound card, for clients in tests/server/test_real_clients.py.

The microphone repeats the recording MICROPHONE; played audio is appended to LOUDSPEAKER as raw float32 samples.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
import soxr

Callback = Callable[[np.ndarray, int, object, object], None]


class _Stream:
    """Calls back for each block of samples in real time, in its own thread like the driver of a sound card."""

    def __init__(
        self, samplerate: float, channels: int, blocksize: int, callback: Callback, dtype: object = "float32"
    ) -> None:
        assert np.dtype(dtype) == np.float32 and blocksize, "only blocks of a fixed size, as float32"
        self.rate, self.frames, self.channels, self.callback = samplerate, blocksize, channels, callback
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    close = stop

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            self.block()
            due += self.frames / self.rate

    def block(self) -> None:
        raise NotImplementedError


class InputStream(_Stream):
    """The microphone."""

    def start(self) -> None:
        pcm, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32", always_2d=True)
        self._pcm = soxr.resample(pcm[:, 0], rate, self.rate)
        super().start()

    def block(self) -> None:
        mono = np.resize(self._pcm, self.frames)
        self._pcm = np.roll(self._pcm, -self.frames)
        self.callback(np.repeat(mono[:, None], self.channels, 1), self.frames, None, None)


class OutputStream(_Stream):
    """The loudspeaker."""

    def block(self) -> None:
        played = np.zeros((self.frames, self.channels), np.float32)
        self.callback(played, self.frames, None, None)
        with Path(os.environ["LOUDSPEAKER"]).open("ab") as file:
            file.write(played[:, 0].tobytes())
