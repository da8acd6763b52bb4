"""The last frames of every slot: their tokens, and whether both speakers were quiet. Called by `runtime.session`.

A conversation can be computed again from them: see `runtime.rebuild`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Floats, Rows, Tokens

QUIET_RMS = 10 ** (-45 / 20)  # of full scale: room noise, not speech


class FrameLog:
    """Up to `length` frames [17] of each slot. They count from 0; frame f is entry f % length."""

    def __init__(self, slots: int, streams: int, length: int):
        self.length = length
        self._tokens = np.zeros((slots, length, streams), np.int32)
        self._quiet = np.zeros((slots, length), np.bool_)
        self.count = np.zeros(slots, np.int64)  # frames of each conversation until now
        self._least = np.zeros(
            slots, np.int64
        )  # older frames are overwritten by frames that were dropped, or never came

    def add(self, rows: Rows, tokens: Tokens, quiet: npt.NDArray[np.bool_] | bool) -> None:
        """Add a frame [n, 17] to slots `rows`. `quiet` [n]: whether neither speaker made a sound."""
        entry = self.count[rows] % self.length
        self._tokens[rows, entry] = tokens
        self._quiet[rows, entry] = quiet
        self.count[rows] += 1

    def first(self, row: int) -> int:
        """The oldest frame that a slot still has."""
        return max(int(self._least[row]), int(self.count[row]) - self.length)

    def frames(self, row: int, start: int, end: int) -> Tokens:
        """Frames start, ..., end - 1 of a slot, [end - start, 17]."""
        assert self.first(row) <= start <= end <= self.count[row], (start, end, self.count[row])
        return self._tokens[row, np.arange(start, end) % self.length].astype(np.int64)

    def quiet(self, row: int, start: int, end: int) -> npt.NDArray[np.bool_]:
        """Whether both speakers were quiet in frames start, ..., end - 1."""
        flags: npt.NDArray[np.bool_] = self._quiet[row, np.arange(start, end) % self.length]
        return flags

    def drop(self, row: int, frames: int) -> None:
        """Forget the newest frames of a slot. The older ones that they overwrote do not come back."""
        self._least[row] = self.first(row)
        self.count[row] -= frames

    def reset(self, row: int) -> None:
        self.count[row] = self._least[row] = 0

    def save(self, row: int) -> dict[str, Any]:
        """A copy of a slot's frames, oldest first: tokens [n, 17] int32, quiet [n], and the number of all frames."""
        start, end = self.first(row), int(self.count[row])
        entries = np.arange(start, end) % self.length
        return {"tokens": self._tokens[row, entries], "quiet": self._quiet[row, entries], "count": end}

    def restore(self, row: int, saved: dict[str, Any]) -> None:
        """Write back what `save` gave, into any slot."""
        end, kept = int(saved["count"]), len(saved["tokens"])
        entries = np.arange(end - kept, end) % self.length
        self._tokens[row, entries], self._quiet[row, entries] = saved["tokens"], saved["quiet"]
        self.count[row], self._least[row] = end, end - kept


def is_quiet(*pcm: Floats) -> npt.NDArray[np.bool_]:
    """Whether every speaker's frames are quiet: pcm [n, 1920] of each speaker; [n]."""
    limit = QUIET_RMS**2 * pcm[0].shape[1]
    flags: npt.NDArray[np.bool_] = np.all([np.einsum("ns,ns->n", each, each) < limit for each in pcm], axis=0)
    return flags
