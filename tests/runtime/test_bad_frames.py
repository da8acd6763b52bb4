"""Bad frames and codes are refused, and leave every session as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from conversations import CODES, PCM, PERSONA, Heard, assert_same, heard, state_of, talk

from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import AudioError, SlotError
from pplex.runtime.session import Runtime, Session


def not_finite(value: float) -> Pcm:
    frame = PCM[0, 0].copy()
    frame[1919] = value
    return frame


BAD_FRAMES = {
    "nan": (not_finite(np.nan), "NaN or infinite"),
    "infinite": (not_finite(-np.inf), "NaN or infinite"),
    "16-bit integers as floats": (PCM[0, 0] * 32768, r"never scaled: divide them by 32,768"),
    "24-bit integers as float64": (PCM[0, 0].astype(np.float64) * 2**23, r"never scaled: divide them by 8,388,608"),
    "too short": (np.zeros(1919, np.float32), r"must be \[1920\] samples.* \[1919\]"),
    "two channels": (np.zeros((1920, 2), np.float32), r"\[1920, 2\]"),
    "empty": (np.zeros(0, np.float32), r"\[0\]"),
    "a batch": (np.zeros((1, 1920), np.float32), r"\[1, 1920\]"),
    "integers": (np.zeros(1920, np.int16), "not int16"),
    "a list": ([0.0] * 1920, "not list"),
}


def two_sessions(runtime: Runtime) -> tuple[Session, Session]:
    first, second = (runtime.open("NATF0", PERSONA, seed=seed) for seed in (7, 8))
    both_step(first, second, range(10))
    return first, second


def both_step(first: Session, second: Session, frames: range) -> list[Heard]:
    replies = [first.runtime.step({first: PCM[0, frame], second: PCM[1, frame]}) for frame in frames]
    return [heard(reply[session] for reply in replies) for session in (first, second)]


@pytest.fixture(scope="module")
def undisturbed(three: Runtime) -> list[Heard]:
    """Replies of two sessions in their second 10 frames."""
    first, second = two_sessions(three)
    with first, second:
        return both_step(first, second, range(10, 20))


@contextmanager
def nothing_happens(runtime: Runtime, undisturbed: list[Heard]) -> Iterator[tuple[Session, Session]]:
    """Two sessions after 10 frames; the block must leave their states and their next 10 replies as they are."""
    first, second = two_sessions(runtime)
    with first, second:
        before = [state_of(runtime, session.row) for session in (first, second)]
        yield first, second
        for session, state in zip((first, second), before, strict=True):
            assert_same(state_of(runtime, session.row), state)
        assert both_step(first, second, range(10, 20)) == undisturbed


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_one_bad_frame_leaves_all_sessions_untouched(three: Runtime, undisturbed: list[Heard], name: str) -> None:
    frame, message = BAD_FRAMES[name]
    with nothing_happens(three, undisturbed) as (good, bad):
        for frames in ({good: PCM[0, 10], bad: frame}, {bad: frame, good: PCM[0, 10]}):
            with pytest.raises(AudioError, match=message):
                three.step(frames)  # type: ignore[arg-type]


def test_after_a_refused_frame_the_other_sessions_continue(three: Runtime) -> None:
    with three.open("NATF0", PERSONA, seed=7) as good:
        expected = talk(good, PCM[0, :5])
    for name, (frame, _) in BAD_FRAMES.items():
        with three.open("NATF0", PERSONA, seed=7) as good, three.open(seed=8) as bad, three.open(seed=9) as worse:
            with pytest.raises(AudioError):
                three.step({bad: not_finite(np.nan), good: PCM[1, 0], worse: frame})  # type: ignore[dict-item]
            assert talk(good, PCM[0, :5]) == expected, name


def test_a_closed_session_among_others_leaves_them_untouched(three: Runtime, undisturbed: list[Heard]) -> None:
    with nothing_happens(three, undisturbed) as (first, second):
        closed = three.open(seed=0)
        closed.close()
        with pytest.raises(SlotError, match="closed"):
            three.step({first: PCM[0, 10], closed: PCM[2, 10], second: PCM[1, 10]})


BAD_CODES = {
    "negative": np.array([0, 1, 2, 3, 4, 5, 6, -1]),
    "too large": np.array([2048, 1, 2, 3, 4, 5, 6, 7]),
    "seven": np.arange(7),
    "nine": np.arange(9),
    "none": np.zeros(0, np.int64),
    "two frames": np.zeros((2, 8), np.int64),
    "one number": np.array(5),
    "fractions": np.full(8, 0.5),
    "not numbers": np.full(8, np.nan),
}


@pytest.mark.parametrize("name", BAD_CODES)
def test_bad_codes_leave_all_sessions_untouched(three: Runtime, undisturbed: list[Heard], name: str) -> None:
    with nothing_happens(three, undisturbed) as (good, bad):
        for frames in (
            {bad: BAD_CODES[name]},
            {good: CODES[0, 0], bad: BAD_CODES[name]},
            {bad: BAD_CODES[name], good: CODES[0, 0]},
        ):
            with pytest.raises(AudioError, match="8 whole codes from 0 to 2047"):
                three.step_codes(frames)
