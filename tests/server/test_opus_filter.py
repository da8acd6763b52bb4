"""The filter that halves the sample rate of decoded Opus."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.server import opus
from pplex.server.opus import HalfBandDecimator


def tone(frequency_hz: float) -> opus.Pcm16:
    return (20_000 * np.sin(2 * np.pi * frequency_hz * np.arange(9600) / 48_000)).astype(np.int16)


@pytest.mark.parametrize("frequency_hz", [50, 1000, 5000, 9000, 10_500])
def test_filter_is_flat_up_to_10_5_khz(frequency_hz: float) -> None:
    pcm = HalfBandDecimator().push([tone(frequency_hz)])[100:-100]
    assert np.sqrt(2 * np.mean(pcm**2)) * 32768 / 20_000 == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("frequency_hz", [13_500, 16_000, 20_000, 23_500])
def test_filter_suppresses_tones_that_would_fold(frequency_hz: float) -> None:
    pcm = HalfBandDecimator().push([tone(frequency_hz)])[100:-100]
    assert 20 * np.log10(np.sqrt(2 * np.mean(pcm**2)) * 32768 / 20_000) < -70


def test_filter_delay_is_below_a_millisecond() -> None:
    impulse = np.zeros(960, np.int16)
    impulse[1] = 32767
    assert np.abs(HalfBandDecimator().push([impulse])).argmax() == 20  # (1 + 39) / 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 500).map(lambda n: 2 * n), min_size=1, max_size=20))
def test_filter_output_does_not_depend_on_chunk_sizes(sizes: list[int]) -> None:
    noise = np.random.default_rng(0).integers(-32768, 32768, sum(sizes)).astype(np.int16)
    divided, decimator = np.split(noise, np.cumsum(sizes)[:-1]), HalfBandDecimator()
    assert np.array_equal(
        np.concatenate([decimator.push([part]) for part in divided]), HalfBandDecimator().push([noise])
    )


def test_the_loudest_samples_stay_within_bounds() -> None:
    square = np.where(np.arange(9600) // 13 % 2, 32767, -32768).astype(np.int16)
    assert np.abs(HalfBandDecimator().push([square])).max() == 1
