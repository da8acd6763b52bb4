"""Synthetic sound in place of recordings: for random checkpoints, calibration, benchmarks and load tests.

Called by `bench`, `export` and `server`.
"""

from typing import Any

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ


def speech_like(frames: int, frame_size: int, seed: int) -> Pcm:
    """Sound that a codec treats like speech: a moving pitch with harmonics and two moving formants, noise bursts, pauses.

    [frames * frame_size] float32, within 0.5.
    """
    random = np.random.default_rng(seed)
    time_s = np.arange(frames * frame_size) / SAMPLE_RATE_HZ

    def curve(rate_hz: float, low: float, high: float) -> Any:
        knots = random.uniform(low, high, int(time_s[-1] * rate_hz) + 2)
        return np.interp(time_s * rate_hz, np.arange(len(knots)), knots)

    pitch_hz, formants_hz = curve(3, 80, 280), (curve(6, 250, 900), curve(6, 900, 2800))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    voice = np.zeros_like(time_s)
    for k in range(1, 17):
        voice += sum(1 / (1 + ((k * pitch_hz - formant) / 150) ** 2) for formant in formants_hz) * np.sin(k * phase)
    voiced, hiss = curve(5, -0.6, 1).clip(0), curve(6, -2, 0.6).clip(0)
    pcm = voice * voiced + random.standard_normal(len(time_s)) * hiss
    loud = 0.5 * np.tanh(pcm / (3 * pcm.std()))
    return np.asarray(loud, np.float32)
