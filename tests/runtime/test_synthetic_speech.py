"""Synthetic speech: pauses and seeds."""

import numpy as np

from pplex.runtime.synthetic_speech import speech_like


def test_sound_has_pauses_like_speech() -> None:
    pcm = speech_like(375, 1920, seed=1)
    loudness = np.sqrt(np.mean(pcm[: 24_000 * 29].reshape(-1, 2400) ** 2, axis=1))
    assert pcm.dtype == np.float32 and pcm.shape == (375 * 1920,) and np.abs(pcm).max() <= 0.5
    assert 0.4 < np.mean(loudness > 0.02) < 0.95


def test_a_seed_repeats_the_sound() -> None:
    pcm = speech_like(10, 1920, seed=1)
    assert (speech_like(10, 1920, seed=1) == pcm).all() and (speech_like(10, 1920, seed=2) != pcm).any()
