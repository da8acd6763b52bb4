"""The log of frames: what it still has, after frames were added and dropped in any order."""

import numpy as np
import pytest

from pplex.runtime.frame_log import FrameLog


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
