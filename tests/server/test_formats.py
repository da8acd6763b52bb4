"""Raw samples: f32 follows the rule of `Session.step`."""

import numpy as np
import pytest

from pplex.server.formats import make_receiver
from pplex.server.wire import Close, ProtocolError

NO_LIMIT = 10**6


def test_f32_above_full_scale_is_accepted_as_by_a_session() -> None:
    pcm = np.array([0.5, -1.5, 4.0, -15.9], "<f4")
    np.testing.assert_array_equal(make_receiver("f32").push(pcm.tobytes(), NO_LIMIT).pcm, pcm)


@pytest.mark.parametrize(
    ("pcm", "words"),
    [
        (np.full(480, 9830, "<f4"), "up to 9,830, but full scale is 1.0. They look like 16-bit integers"),
        (np.full(480, -3e6, "<f4"), "24-bit integers that were never scaled: divide them by 8,388,608"),
        (np.array([0, np.nan], "<f4"), "NaN or infinite"),
    ],
    ids=["16-bit", "24-bit", "NaN"],
)
def test_f32_that_is_not_scaled_or_finite_ends_the_connection_with_the_reason(pcm: np.ndarray, words: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        make_receiver("f32").push(pcm.tobytes(), NO_LIMIT)
    assert refusal.value.code == Close.INVALID and words in str(refusal.value)


def test_s16_is_scaled() -> None:
    pcm = np.array([0, 16_384, -32_768], "<i2")
    np.testing.assert_array_equal(make_receiver("s16").push(pcm.tobytes(), NO_LIMIT).pcm, [0, 0.5, -1])
