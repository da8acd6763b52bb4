"""Checks that the newest step reads the right entries of the KV cache's ring, in any precision.

The check writes large values into one entry and repeats the step. If the step reads the entry, the hidden state changes;
otherwise every bit stays the same. So the check finds a window that is one step too long, which rounding to 8 bits or
fewer would otherwise hide. Called by the drift and graphs sections.
"""

from collections.abc import Sequence

import numpy as np

from pplex.runtime.arrays import Array, Floats, Tokens
from pplex.runtime.device import Buffer
from pplex.runtime.precision import storage_dtype
from pplex.runtime.stages import Stages
from pplex.validate.report.schema import Measure, Tolerance

LARGE = 1e4
BFLOAT16_LARGE = 0x461C  # the same in bfloat16, which numpy holds as bits


def window_measure(name: str, stages: Stages, codes: Tokens, capacity: int) -> Measure:
    """Measure slot 0 of `stages` after all steps of codes [T + 1, 17], with a ring of `capacity`. The caller resets it."""
    steps = len(codes) - 1  # the last step is repeated: it writes the same values
    stages.codes[0, 0], stages.position[0], stages.forced_text[0] = codes[steps - 1], steps - 1, 0
    in_use = capacity - 1  # see layers.readable
    written, newest = min(steps, in_use), (steps - 1) % in_use  # the repeated step writes the newest entry again
    entries = {
        "the window's oldest": (max(0, steps - in_use) % in_use, True),
        "the second newest": ((steps - 2) % in_use, True),
        "the last in use": (written - 1 if newest != written - 1 else written - 2, True),
        "the first not in use": (written, False),
    }
    expected = _hidden(stages)
    wrong = []
    for which, (entry, read) in entries.items():
        kept = _overwrite(stages, entry, None)
        changed = not np.array_equal(_hidden(stages), expected)
        _overwrite(stages, entry, kept)
        if changed != read:
            wrong.append(f"{which} is {'not ' if read else ''}read")
    return Measure(
        name,
        len(wrong),
        "entries",
        f"Wrong entries of {len(entries)} tested ones after {steps} steps: masked but read, or not read.",
        Tolerance(0, "a masked entry changes no bit, in any precision"),
        ", ".join(wrong),
    )


def _hidden(stages: Stages) -> Floats:
    stages.run("temporal", 1)
    return stages.hidden[0].copy()


def _overwrite(stages: Stages, entry: int, values: Sequence[Array] | None) -> list[Array]:
    """Write `values`, or large numbers, to an entry of every layer's values; returns the old ones, [H, 1, D] each."""
    before = list[Array]()
    for state in stages.engines["temporal"].spec.state:
        if state.name.startswith("v."):
            ring = stages.engines["temporal"].state[state.name].rows(0, 1)  # [1, H, C, D]
            there, shape = ring.part(2, entry, 1), (ring.shape[1], 1, ring.shape[3])
            found = np.empty(shape, storage_dtype(state.dtype))
            large = np.full(shape, BFLOAT16_LARGE if state.dtype == "bfloat16" else LARGE, found.dtype)
            given = np.ascontiguousarray(large if values is None else values[len(before)])
            stages.device.copy(Buffer.of(found).part(1, 0, 1), there)()
            stages.device.copy(there, Buffer.of(given).part(1, 0, 1))()
            stages.device.synchronize()
            before.append(found)
    return before
