"""Sampling noise: what it depends on, its distribution, and recorded draws in its place."""

import numpy as np
import pytest

from pplex.runtime.config import CODEBOOKS, MAX_CANDIDATES
from pplex.runtime.errors import NoiseError
from pplex.runtime.noise import TINY, FrameNoise, Noise32, NoiseSource, replay


class Slot:
    """A slot's rows of noise, [1 + K, N]: text, then a row per codebook; and what draws into their first candidates."""

    def __init__(self, seed: int, text: int = MAX_CANDIDATES, audio: int = MAX_CANDIDATES):
        self.rows = np.full((1 + CODEBOOKS, MAX_CANDIDATES), np.nan, np.float32)
        self._source = NoiseSource(seed, self.rows[0, :text], self.rows[1:, :audio])

    def draw(self) -> Noise32:
        self._source.draw()
        return self.rows.copy()


def drawn(seed: int, frame: int) -> Noise32:
    """One frame's draws for all candidates, [1 + K, N]."""
    slot = Slot(seed)
    return [slot.draw() for _ in range(frame + 1)][-1]


def runs(noise: Noise32, length: int = 4) -> set[bytes]:
    """Every run of `length` draws, in the order they were drawn."""
    windows = np.lib.stride_tricks.sliding_window_view(noise.reshape(-1), length)
    return {window.tobytes() for window in windows}


@pytest.mark.parametrize("seed", [0, 42, (1 << 63) - 1, (1 << 64) - 1])
def test_a_seed_gives_the_same_frames_whoever_else_draws_in_between(seed: int) -> None:
    alone = Slot(seed)
    expected = [alone.draw() for _ in range(20)]
    slot, others = Slot(seed), [Slot(seed), Slot(seed + 1 if seed < 100 else 1, 25, 250)]
    for frame in range(20):
        for other in others[: frame % 3]:
            other.draw()
        np.testing.assert_array_equal(slot.draw(), expected[frame])


@pytest.mark.parametrize("text, audio", [(25, 250), (1, 2), (512, 1)])
def test_only_candidates_that_can_be_chosen_are_drawn(text: int, audio: int) -> None:
    slot = Slot(3, text, audio)
    frames = np.stack([slot.draw() for _ in range(3)])
    for part in (frames[:, 0, :text], frames[:, 1:, :audio]):
        assert (part > 0).all() and len(np.unique(part)) == part.size
    assert np.isnan(frames[:, 0, text:]).all() and np.isnan(frames[:, 1:, audio:]).all()


def test_what_the_rows_held_before_does_not_matter() -> None:
    slot, other = Slot(3), Slot(3)
    slot.draw()
    other.draw()
    slot.rows[...] = np.inf
    np.testing.assert_array_equal(slot.draw(), other.draw())


def test_frames_and_seeds_share_no_run_of_draws() -> None:
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
    slot = Slot(1)
    x = np.sort(np.concatenate([slot.draw().reshape(-1) for _ in range(100)]).astype(np.float64))
    n = len(x)
    assert abs(x.mean() - 1) < 5 * np.sqrt(1 / n)
    assert abs(x.var() - 1) < 5 * np.sqrt(8 / n)
    distance = np.abs(np.arange(1, n + 1) / n - (1 - np.exp(-x))).max()
    assert distance < 2 / np.sqrt(n)  # Kolmogorov: once in 1500 samples by chance


def test_codebooks_are_not_correlated() -> None:
    slot = Slot(1)
    noise = np.stack([slot.draw() for _ in range(100)])  # [F, 1 + K, N]
    correlation = np.corrcoef(noise.transpose(1, 0, 2).reshape(1 + CODEBOOKS, -1)) - np.eye(1 + CODEBOOKS)
    assert np.abs(correlation).max() < 5 / np.sqrt(100 * MAX_CANDIDATES)


def test_a_draw_of_zero_becomes_positive() -> None:
    """One draw in 2^23 is exactly zero: some frames of millions have one."""
    text, audio = np.empty(1 << 20, np.float32), np.empty((1, 1 << 20), np.float32)
    source, raw = NoiseSource(0, text, audio), np.random.Generator(np.random.PCG64(0))
    zeros = np.zeros(2, int)
    while not zeros.all():
        source.draw()
        expected = raw.standard_exponential((2, 1 << 20), np.float32)
        np.testing.assert_array_equal([text, audio[0]], np.maximum(expected, TINY))
        zeros += (expected == 0).sum(axis=1)


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
