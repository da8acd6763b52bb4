"""The KV cache of the temporal transformer: the length of its rings, and copies of a slot. Called by `runtime.stages`."""

from collections.abc import Mapping

import numpy as np

from pplex.runtime.arrays import Array, Tokens
from pplex.runtime.engine import Engine
from pplex.runtime.frame import FrameRunner

SHORTEST_RING = 128  # steps, 10 s: the length when a conversation starts


class KvCache:
    """Rings as long as the longest conversation in a slot needs.

    A step of the temporal transformer reads whole rings. Their length is one of `lengths`: they grow with a conversation,
    and shrink when the longest conversation ends. An engine with fixed rings has one length.
    """

    def __init__(self, engine: Engine, slots: int, lengths: list[int], frame: FrameRunner):
        """`engine`: that of the temporal transformer, with rings of lengths[0]. `frame` has the calls bound to the rings."""
        self._engine, self._lengths, self._frame = engine, lengths, frame
        self.ring_length = lengths[0]  # entries that a step reads now
        self._written = np.zeros(slots, np.int64)  # entries of each slot

    def reserve(self, row: int, steps: Tokens) -> None:
        """Make rings long enough for `steps` [n] entries of rows row, ..., row + n - 1."""
        written = self._written[row : row + len(steps)]
        np.maximum(written, steps, out=written)
        self._grow()

    def release(self, row: int) -> None:
        """Drop a slot's entries. The rings get shorter if no other slot needs their length."""
        self._written[row] = 0
        needed = self._length_for(int(self._written.max()))
        if 2 * needed <= self.ring_length:  # a ring that is only a little too long may soon be needed again
            self._resize(needed)

    def save(self, row: int, steps: int) -> dict[str, Array]:
        """A copy of a slot's first `steps` entries, as in `Engine.save`."""
        return self._engine.save(row, steps)

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        self._written[row] = max(entries.shape[1] for entries in saved.values())
        self._grow()
        self._engine.restore(row, saved)

    def copy(self, source: int, target: int, steps: int) -> None:
        """Replace a slot's entries by the first `steps` of another slot."""
        self._engine.copy(source, target, min(steps, self.ring_length))
        self.truncate(target, steps)

    def truncate(self, row: int, steps: int) -> None:
        """Keep the first `steps` entries of a slot."""
        self._engine.truncate(row, steps, min(int(self._written[row]), self.ring_length))
        self._written[row] = steps

    def _grow(self) -> None:
        needed = self._length_for(int(self._written.max()))
        if needed > self.ring_length:
            self._resize(needed)

    def _length_for(self, steps: int) -> int:
        """The shortest length that can hold `steps` entries."""
        # A full ring hides its oldest entry. The model does that only at full capacity, so a shorter ring keeps one free.
        return next((length for length in self._lengths if length > steps), self._lengths[-1])

    def _resize(self, length: int) -> None:
        in_use = {row: int(steps) for row, steps in enumerate(self._written) if steps}
        # Drop the calls first: they keep the old rings in memory, which are as large as the new ones.
        self._frame.drop_calls("temporal")
        self._engine.resize({"C": length}, in_use)
        self.ring_length = length


def ring_lengths(capacity: int) -> list[int]:
    """128, 192, 256, 384, ..., `capacity`: each is 1.33 or 1.5 times the one before.

    So at most a third of a ring's entries are unused, except in the shortest ring.
    """
    powers = [SHORTEST_RING << i for i in range(max(1, capacity).bit_length())]
    return [n for power in powers for n in (power, power * 3 // 2) if n < capacity] + [capacity]
