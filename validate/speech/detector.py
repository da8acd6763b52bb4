"""Voice activity detection by silero-vad's ONNX model. Called by `validate.validation` and `fdb.segments`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import soxr
import torch

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.validate.speech.turns import Segment

VAD_RATE_HZ = 16_000
MIN_SPEECH_MS = 150  # a short "mm" lasts longer
MIN_SILENCE_MS = 100
THRESHOLD = 0.5  # also for ends: silero-vad's default for ends, 0.35, detects them 10 ms later


def load_silero() -> Callable[..., list[dict[str, Any]]]:
    """silero-vad's search for speech in pcm [samples] at 16 kHz, with its model; options are silero-vad's own.

    Raises ModuleNotFoundError if the package is not installed.
    """
    threads = torch.get_num_threads()
    from silero_vad import get_speech_timestamps_sequence, load_silero_vad

    torch.set_num_threads(threads)  # the import of silero_vad sets the process to one thread
    return partial(get_speech_timestamps_sequence, model=load_silero_vad(sequence=True))


class SpeechDetector:
    """silero-vad with its model. Raises ModuleNotFoundError if the package is not installed."""

    def __init__(self) -> None:
        self._find = load_silero()

    def __call__(self, pcm: Pcm) -> list[Segment]:
        """Speech in pcm [samples] at 24 kHz, with bounds accurate to 32 ms; samples that are not finite count as silence."""
        heard = np.nan_to_num(pcm, nan=0, posinf=0, neginf=0)
        found = self._find(
            soxr.resample(heard, SAMPLE_RATE_HZ, VAD_RATE_HZ),
            threshold=THRESHOLD,
            neg_threshold=THRESHOLD,
            min_speech_duration_ms=MIN_SPEECH_MS,
            min_silence_duration_ms=MIN_SILENCE_MS,
            speech_pad_ms=0,
        )
        return [(segment["start"] / VAD_RATE_HZ, segment["end"] / VAD_RATE_HZ) for segment in found]
