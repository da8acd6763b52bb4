"""Sampling noise: what it depends on, its distribution, and recorded draws in its place."""

from itertools import count

import numpy as np
import pytest

from pplex.runtime.config import CODEBOOKS, MAX_CANDIDATES
from pplex.runtime.errors import NoiseError
from pplex.runtime.noise import FrameNoise, Noise32, draw, replay

TINY = np.finfo(np.float32).tiny


def drawn(seed: int, frame: int) -> Noise32:
    """One frame's draws, [1 + K, N]: text, then a row per codebook."""
    noise = np.full((1 + CODEBOOKS, MAX_CANDIDATES), np.nan, np.float32)
    draw(seed, frame, noise[0], noise[1:])
    return noise


def runs(noise: Noise32, length: int = 4) -> set[bytes]:
    """Every run of `length` draws, in the order they were drawn."""
    windows = np.lib.stride_tricks.sliding_window_view(noise.reshape(-1), length)
    return {window.tobytes() for window in windows}


@pytest.mark.parametrize("seed", [0, 42, (1 << 63) - 1, (1 << 64) - 1])
def test_seed_and_frame_decide_every_draw_in_any_order(seed: int) -> None:
    frames = [0, 1, 2, 1000, 10_000_000]
    forwards = {frame: drawn(seed, frame) for frame in frames}
    for frame in reversed(frames):
        drawn(seed + 1, frame)
        np.testing.assert_array_equal(drawn(seed, frame), forwards[frame])


def test_buffers_are_filled_whatever_they_held() -> None:
    text, audio = np.zeros(MAX_CANDIDATES, np.float32), np.full((CODEBOOKS, MAX_CANDIDATES), np.inf, np.float32)
    draw(3, 5, text, audio)
    np.testing.assert_array_equal(np.vstack([text, audio]), drawn(3, 5))


def test_frames_and_seeds_share_no_run_of_draws() -> None:
    """Frames that began one counter value apart would be each other's draws, shifted."""
    seen: set[bytes] = set()
    kinds = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (1, 1), (1 << 63, 0), (1 << 32, 0)]
    for seed, frame in kinds:
        found = runs(drawn(seed, frame))
        assert not seen & found, (seed, frame)
        seen |= found


def test_rows_of_a_frame_share_no_run_of_draws() -> None:
    noise = drawn(0, 0)
    assert sum(len(runs(row)) for row in noise) == len(set().union(*map(runs, noise)))


def test_draws_are_exponential() -> None:
    x = np.sort(np.concatenate([drawn(1, frame).reshape(-1) for frame in range(100)]).astype(np.float64))
    n = len(x)
    assert abs(x.mean() - 1) < 5 * np.sqrt(1 / n)
    assert abs(x.var() - 1) < 5 * np.sqrt(8 / n)
    distance = np.abs(np.arange(1, n + 1) / n - (1 - np.exp(-x))).max()
    assert distance < 2 / np.sqrt(n)  # Kolmogorov: once in 1500 samples by chance


def test_codebooks_are_not_correlated() -> None:
    noise = np.stack([drawn(1, frame) for frame in range(100)])  # [F, 1 + K, N]
    correlation = np.corrcoef(noise.transpose(1, 0, 2).reshape(1 + CODEBOOKS, -1)) - np.eye(1 + CODEBOOKS)
    assert np.abs(correlation).max() < 5 / np.sqrt(100 * MAX_CANDIDATES)


@pytest.mark.parametrize("part, first_frame", [("text", 8700), ("audio", 600)])
def test_a_draw_of_zero_becomes_positive(part: str, first_frame: int) -> None:
    """One draw in 2^23 is exactly zero; the search starts shortly before the first frame of seed 0 that has one."""
    rows = slice(0, 1) if part == "text" else slice(1, None)

    def raw(frame: int) -> Noise32:
        generator = np.random.Generator(np.random.Philox(key=0, counter=frame << 64))
        return generator.standard_exponential((1 + CODEBOOKS, MAX_CANDIDATES), np.float32)

    frame = next(frame for frame in count(first_frame) if (raw(frame)[rows] == 0).any())
    np.testing.assert_array_equal(drawn(0, frame), np.maximum(raw(frame), TINY))
    assert drawn(0, frame)[rows].min() == TINY


@pytest.mark.parametrize("recorded_steps", [CODEBOOKS, 2 * CODEBOOKS])
@pytest.mark.parametrize("text, audio", [(25, 250), (1, 1), (MAX_CANDIDATES, MAX_CANDIDATES)])
def test_recorded_noise_comes_first_and_ones_follow(recorded_steps: int, text: int, audio: int) -> None:
    random = np.random.default_rng(0)
    noise = FrameNoise(
        random.exponential(size=text).astype(np.float32),
        random.exponential(size=(recorded_steps, audio)).astype(np.float32),
    )
    buffer = np.full((1 + CODEBOOKS, MAX_CANDIDATES), np.nan, np.float32)
    replay(noise, buffer[0], buffer[1:])
    np.testing.assert_array_equal(buffer[0, :text], noise.text)
    np.testing.assert_array_equal(buffer[1:, :audio], noise.audio[:CODEBOOKS])
    assert (buffer[0, text:] == 1).all() and (buffer[1:, audio:] == 1).all()


@pytest.mark.parametrize(
    "text, audio",
    [
        (np.ones(513), np.ones((8, 10))),
        (np.ones(10), np.ones((7, 10))),
        (np.ones((1, 10)), np.ones((8, 10))),
        (np.ones(10), np.ones(80)),
        (np.zeros(10), np.ones((8, 10))),
        (np.ones(10), np.full((8, 10), np.nan)),
    ],
)
def test_recorded_noise_that_is_none_is_refused(text: np.ndarray, audio: np.ndarray) -> None:
    with pytest.raises(NoiseError):
        FrameNoise(text, audio).check(steps=8)
