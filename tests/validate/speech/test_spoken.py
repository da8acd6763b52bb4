"""The babble of a user without recordings."""

import numpy as np
import pytest

from pplex.validate.speech.spoken import PEAK, spoken


@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.345])
def test_lasts_as_long_as_asked_for_within_half_of_full_scale(seconds: float) -> None:
    pcm = spoken(seconds, seed=3)
    assert pcm.dtype == np.float32 and len(pcm) == round(24_000 * seconds)
    assert np.abs(pcm).max() == pytest.approx(PEAK)


def test_depends_on_the_seed_only() -> None:
    assert np.array_equal(spoken(0.5, 1), spoken(0.5, 1))
    assert not np.allclose(spoken(0.5, 1), spoken(0.5, 2), atol=0.1)


def test_begins_and_ends_sharply() -> None:
    pcm = np.abs(spoken(1.0, 0))
    assert pcm[0] == 0 and pcm[-1] < 0.01
    assert pcm[:480].max() > 0.1 and pcm[-480:].max() > 0.1  # 20 ms
