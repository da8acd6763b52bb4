"""Streams at 8 and 16 kHz: chunks, delay, and the response beside soxr's."""

from itertools import pairwise
from math import gcd

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.server.resampling import Resampler

PAIRS = [(8_000, 24_000), (24_000, 8_000), (16_000, 24_000), (24_000, 16_000)]
RATES = pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS, ids=[f"{a // 1000}-to-{b // 1000}" for a, b in PAIRS])
SAME = 1e-7  # one bit of float32 near full scale is 6e-8
EDGES_HZ = {8_000: (3_400, 4_600, -58), 16_000: (7_200, 8_800, -63)}  # end of the flat band, stop band, dB there
GRID_HZ = 50  # tones are multiples, so a spectrum of 20 ms shows each in one bin


def sine(n: int, rate_hz: int, tone_hz: float) -> np.ndarray:
    return np.sin(2 * np.pi * tone_hz * np.arange(n) / rate_hz).astype(np.float32)


def spectrum(pcm: np.ndarray, rate_hz: int) -> np.ndarray:
    """Amplitudes of the tones at multiples of 50 Hz, in the 20 ms that begin 40 ms after the start."""
    n = rate_hz // GRID_HZ
    return np.fft.rfft(pcm[2 * n : 3 * n]) / n * 2


@RATES
@settings(deadline=None)  # a busy machine may pause for longer
@given(
    lengths=st.lists(st.integers(0, 700), max_size=12),
    tone_hz=st.floats(50, 3_900),
    further=st.sampled_from([0, 5_000]),  # longer than what is resampled at once
)
def test_a_sine_in_any_chunks_equals_the_whole(
    from_hz: int, to_hz: int, lengths: list[int], tone_hz: float, further: int
) -> None:
    lengths = [*lengths, further]
    pcm = sine(sum(lengths), from_hz, tone_hz)
    whole = Resampler(from_hz, to_hz).process(pcm)
    resampler, block, received = Resampler(from_hz, to_hz), from_hz // gcd(from_hz, to_hz), np.zeros(0, np.float32)
    borders = np.cumsum([0, *lengths])
    for start, end in pairwise(borders):
        chunk = resampler.process(pcm[start:end])
        received = np.concatenate([received, chunk])
        assert chunk.dtype == np.float32
        assert len(received) == end // block * to_hz // gcd(from_hz, to_hz)
    np.testing.assert_allclose(received, whole, rtol=0, atol=SAME)


@RATES
def test_samples_one_by_one_equal_the_whole(from_hz: int, to_hz: int) -> None:
    pcm, resampler = sine(1_000, from_hz, 1_000), Resampler(from_hz, to_hz)
    pieces = [resampler.process(pcm[i : i + 1]) for i in range(len(pcm))]
    np.testing.assert_allclose(np.concatenate(pieces), Resampler(from_hz, to_hz).process(pcm), rtol=0, atol=SAME)


@RATES
def test_after_reset_it_is_as_new(from_hz: int, to_hz: int) -> None:
    pcm, resampler = sine(500, from_hz, 700), Resampler(from_hz, to_hz)
    resampler.process(pcm[:301])
    resampler.reset()
    np.testing.assert_array_equal(resampler.process(pcm), Resampler(from_hz, to_hz).process(pcm))


@RATES
def test_streams_do_not_share_a_state(from_hz: int, to_hz: int) -> None:
    one, other = Resampler(from_hz, to_hz), Resampler(from_hz, to_hz)
    one.process(np.ones(1_000, np.float32))
    assert not other.process(np.zeros(480, np.float32)).any()


@RATES
def test_a_constant_passes_unchanged(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    settled = resampler.process(np.full(960, 0.5, np.float32))[round(2 * resampler.delay_s * to_hz) + 1 :]
    np.testing.assert_allclose(settled, 0.5, rtol=0, atol=SAME)


@RATES
def test_the_band_is_flat_and_late_by_the_stated_delay(from_hz: int, to_hz: int) -> None:
    """All tones at once, compared with soxr, which looks ahead and so is not late."""
    low_hz = min(from_hz, to_hz)
    tones = np.arange(GRID_HZ, EDGES_HZ[low_hz][0] + 1, GRID_HZ)
    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, len(tones))
    time_s = np.arange(from_hz // 5) / from_hz
    pcm = np.sin(2 * np.pi * tones * time_s[:, None] + phases).mean(axis=1).astype(np.float32)
    resampler = Resampler(from_hz, to_hz)
    ours = spectrum(resampler.process(pcm), to_hz)[tones // GRID_HZ]
    theirs = spectrum(soxr.resample(pcm, from_hz, to_hz, quality="VHQ"), to_hz)[tones // GRID_HZ]
    response = ours / theirs * np.exp(2j * np.pi * tones * resampler.delay_s)
    assert np.abs(20 * np.log10(np.abs(response))).max() < 0.05  # dB; 0.011 by design
    assert np.abs(np.angle(response)).max() < 0.01  # radians: exactly so late, at every pitch
    assert 0.001 <= resampler.delay_s <= 0.002


@RATES
def test_mirror_images_are_weak(from_hz: int, to_hz: int) -> None:
    """Upwards, a tone's images above the lower band; downwards, what a tone above it leaves."""
    flat_hz, stop_hz, limit_db = EDGES_HZ[min(from_hz, to_hz)]
    is_upwards = to_hz > from_hz
    for tone_hz in range(GRID_HZ, flat_hz + 1, GRID_HZ) if is_upwards else range(stop_hz, from_hz // 2, GRID_HZ):
        found = np.abs(spectrum(Resampler(from_hz, to_hz).process(sine(from_hz // 5, from_hz, tone_hz)), to_hz))
        images = found[stop_hz // GRID_HZ :] if is_upwards else found
        assert 20 * np.log10(images.max()) < limit_db, tone_hz


@RATES
def test_a_sample_that_is_not_a_number_is_soon_forgotten(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    resampler.process(np.array([np.nan], np.float32))
    assert np.isfinite(resampler.process(np.zeros(from_hz // 50, np.float32))[to_hz // 100 :]).all()


@pytest.mark.parametrize(("from_hz", "to_hz"), [(8_000, 16_000), (24_000, 24_000), (24_000, 11_025)])
def test_other_rates_are_refused_by_name(from_hz: int, to_hz: int) -> None:
    with pytest.raises(
        ValueError, match=f"{from_hz:,} to {to_hz:,} Hz: one must be 24,000 Hz, the other 8,000 or 16,000"
    ):
        Resampler(from_hz, to_hz)
