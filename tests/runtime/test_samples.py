"""The rule for samples: shapes, finite numbers, and integers that were never scaled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import AudioError
from pplex.runtime.samples import MAX_LEVEL, check_frame, check_samples


class TestFrame:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_a_frame_of_floats_is_taken_as_it_is(self, dtype: type) -> None:
        pcm = np.full(1920, 0.5, dtype)
        assert check_frame(pcm, 1920) is pcm

    @pytest.mark.parametrize(
        ("pcm", "sentence"),
        [
            (np.zeros(1919, np.float32), r"\[1920\] samples, mono at 24 kHz; this one is \[1919\]"),
            (np.zeros((1, 1920), np.float32), r"this one is \[1, 1920\]"),
            (np.zeros(1920, np.int16), "not int16"),
            (np.zeros(1920, np.complex64), "not complex64"),
            ([0.0] * 1920, "not list"),
        ],
    )
    def test_an_array_that_is_not_a_frame_is_refused(self, pcm: Pcm, sentence: str) -> None:
        with pytest.raises(AudioError, match=sentence):
            check_frame(pcm, 1920)


class TestSamples:
    @pytest.mark.parametrize("sample", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [(0, 0), (1, 5), (2, 1919)])
    def test_one_sample_that_is_not_finite_is_found_in_any_frame(self, sample: float, place: tuple[int, int]) -> None:
        pcm = np.random.default_rng(0).normal(size=(3, 1920)).astype(np.float32)
        pcm[0, 100], pcm[1, 200] = MAX_LEVEL, -MAX_LEVEL
        check_samples(pcm)
        pcm[place] = sample
        with pytest.raises(AudioError, match="NaN or infinite"):
            check_samples(pcm)

    @pytest.mark.parametrize("bits", [8, 16, 24, 32])
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_integers_of_any_width_are_named_with_their_divisor(self, bits: int, sign: int, dtype: type) -> None:
        pcm = np.zeros(1920, dtype)
        pcm[700] = sign * 0.7 * 2 ** (bits - 1)
        with pytest.raises(AudioError, match=rf"up to {abs(pcm[700]):,.0f}.* {bits}-bit .* {2 ** (bits - 1):,}\."):
            check_samples(pcm)

    def test_beyond_any_integer_the_advice_is_to_scale(self) -> None:
        with pytest.raises(AudioError, match=r"full scale is 1\.0\. Scale them"):
            check_samples(np.array([1e30]))

    @pytest.mark.parametrize("peak", [1.5, 4.0, 15.9])
    def test_samples_slightly_above_full_scale_pass(self, peak: float) -> None:
        check_samples(np.array([0.0, -peak, peak], np.float32))

    def test_an_empty_array_passes(self) -> None:
        check_samples(np.zeros(0, np.float32))

    @given(st.lists(st.floats(width=32), min_size=1, max_size=30))
    def test_rule_holds_for_any_floats(self, values: list[float]) -> None:
        pcm = np.array(values, np.float32)
        try:
            check_samples(pcm)
        except AudioError:
            assert not (np.abs(pcm) <= MAX_LEVEL).all()
        else:
            assert (np.abs(pcm) <= MAX_LEVEL).all()
