"""16-bit samples: their scale, and bytes that are cut anywhere."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pplex.server.formats import make_receiver, make_sender
from pplex.server.pcm16 import PcmBytes, quantized

EVERY_SAMPLE = np.arange(-(1 << 15), 1 << 15).astype("<i2")


@given(
    payload=st.binary(max_size=50).filter(lambda payload: len(payload) % 2 == 0),
    cuts=st.lists(st.integers(0, 50), max_size=8),
)
def test_bytes_give_the_same_samples_however_they_are_cut(payload: bytes, cuts: list[int]) -> None:
    reader, borders = PcmBytes(), [0, *sorted(cuts), len(payload)]
    pieces = [reader.push(payload[start:end]) for start, end in pairwise(borders)]
    assert all(piece.dtype == np.float32 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), np.frombuffer(payload, "<i2") / 32_768)


def test_half_a_sample_does_not_reach_the_next_stream() -> None:
    reader = PcmBytes()
    assert len(reader.push(b"\x01")) == 0
    reader.reset()
    np.testing.assert_array_equal(reader.push(b"\x00\x40"), [0.5])


def test_all_samples_have_the_scale_of_s16_and_come_back() -> None:
    pcm = PcmBytes().push(EVERY_SAMPLE.tobytes())
    np.testing.assert_array_equal(pcm, make_receiver("s16").push(EVERY_SAMPLE.tobytes(), 1 << 16).pcm)
    np.testing.assert_array_equal(quantized(pcm), EVERY_SAMPLE)
    assert make_sender("s16").frame(pcm) == [EVERY_SAMPLE.tobytes()]


def test_samples_are_rounded_clipped_and_finite() -> None:
    pcm = np.array([0.4, 0.6, -0.6, 32_767.4, 32_768, 1e9, np.inf, -32_768.6, -np.inf, np.nan], np.float32) / 32_768
    expected = [0, 1, -1, 32_767, 32_767, 32_767, 32_767, -32_768, -32_768, 0]
    np.testing.assert_array_equal(quantized(pcm), expected)
