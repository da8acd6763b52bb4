"""The log of frames: a ring that keeps the newest ones of each slot."""

import numpy as np
import pytest

from pplex.runtime.frame_log import QUIET_RMS, FrameLog, is_quiet

ROW = np.array([1])


def filled(frames: int) -> FrameLog:
    """Slot 1 of 3 has frames 0, 1, ..., whose tokens are their numbers; every third frame is quiet."""
    log = FrameLog(3, 17, length=10)
    for frame in range(frames):
        log.add(ROW, np.full((1, 17), frame), np.array([frame % 3 == 0]))
    return log


@pytest.mark.parametrize("frames", [0, 1, 9, 10, 11, 25])
def test_the_newest_frames_are_kept(frames: int) -> None:
    log = filled(frames)
    first = log.first(1)
    assert first == max(0, frames - 10) and log.count.tolist() == [0, frames, 0]
    assert log.frames(1, first, frames)[:, 3].tolist() == list(range(first, frames))
    assert log.quiet(1, first, frames).tolist() == [frame % 3 == 0 for frame in range(first, frames)]


def test_dropped_frames_are_overwritten() -> None:
    log = filled(25)
    log.drop(1, 4)
    log.add(ROW, np.full((1, 17), 500), False)
    assert log.frames(1, 19, 22)[:, 0].tolist() == [19, 20, 500]


@pytest.mark.parametrize("frames", [0, 4, 25])
def test_a_saved_log_continues_in_another_slot(frames: int) -> None:
    log, other = filled(frames), FrameLog(1, 17, length=10)
    saved = log.save(1)
    log.add(ROW, np.full((1, 17), 500), False)
    other.restore(0, saved)
    assert other.count[0] == frames and other.first(0) == max(0, frames - 10)
    assert np.array_equal(
        other.frames(0, other.first(0), frames), np.arange(other.first(0), frames)[:, None].repeat(17, 1)
    )


def test_slots_are_independent() -> None:
    log = FrameLog(3, 17, length=10)
    log.add(np.array([2, 0]), np.stack([np.full(17, 7), np.full(17, 8)]), np.array([True, False]))
    log.reset(2)
    log.add(np.array([0]), np.full((1, 17), 9), True)
    assert log.count.tolist() == [2, 0, 0] and log.frames(0, 0, 2)[:, 0].tolist() == [8, 9]
    assert log.quiet(0, 0, 2).tolist() == [False, True]


def test_both_speakers_must_be_quiet() -> None:
    quiet, loud = np.full((1, 1920), 0.9 * QUIET_RMS, np.float32), np.full((1, 1920), 1.1 * QUIET_RMS, np.float32)
    user, agent = np.concatenate([quiet, quiet, loud, loud]), np.concatenate([quiet, loud, quiet, loud])
    assert is_quiet(user, agent).tolist() == [True, False, False, False]


@pytest.mark.parametrize("seed", range(20))
def test_the_log_has_only_frames_that_were_added_and_not_dropped(seed: int) -> None:
    rng, log, row = np.random.default_rng(seed), FrameLog(2, 3, 32), np.array([1])
    added: list[np.ndarray] = []
    for _ in range(12):
        for _ in range(rng.integers(1, 60)):
            added.append(rng.integers(0, 1000, 3))
            log.add(row, added[-1][None], False)
        for _ in range(2):
            back = int(rng.integers(0, len(added) - log.first(1) + 1))
            log.drop(1, back)
            del added[len(added) - back :]
            first = log.first(1)
            assert log.count[1] == len(added)
            assert np.array_equal(log.frames(1, first, len(added)), np.array(added[first:]).reshape(-1, 3))
        saved = log.save(1)
        log.reset(1)
        log.restore(0 if rng.integers(2) else 1, saved)
        log.restore(1, saved)
        assert log.first(1) == first
