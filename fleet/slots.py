"""How many conversations one replica holds: the user's number, or what memory and measured frames allow.

Called by `cli.fleet`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.bench.sweep import FRAME, LIMIT_MS
from pplex.engines.choice import choose, target_of
from pplex.engines.plan import MemoryPlan, plan
from pplex.engines.plan_report import Model, with_capacity
from pplex.fleet.rules import LIMITS
from pplex.runtime.errors import ConfigError, GpuError
from pplex.runtime.files import is_file, read_text
from pplex.runtime.gpus import Gpu
from pplex.runtime.precision import parse_precision

FRAME_MS = LIMIT_MS - 1000 * LIMITS.batch_wait_s  # a frame may wait so long for others before its call begins


@dataclass(frozen=True)
class SlotCount:
    """Slots of a replica, and the reason in words. notes: what is not known about them."""

    slots: int
    reason: str
    notes: tuple[str, ...] = ()


def count_slots(asked: int | None, memory: MemoryPlan | None, measured: Path | None) -> SlotCount:
    """The user's number if there is one, otherwise the smaller one of memory's and the measured frames'.

    Raises GpuError if the memory does not hold the slots, ConfigError if nothing limits them or the file is unusable.
    """
    timed = None if measured is None else slots_in_time(measured)
    if memory is not None and (asked or memory.slots == 0):
        memory.check(asked or 1)
    if asked is not None:
        return SlotCount(asked, "given with --slots", _doubts(asked, timed))
    limits = [timed] if timed else []
    if memory is not None and memory.slots is not None:
        reason = f"memory of {memory.gpu.title} in {memory.precision['temporal']}, {memory.capacity} steps of context"
        limits.append(SlotCount(memory.slots, reason))
    if not limits:
        raise ConfigError("How many conversations does a replica hold? Name its --gpu, or give --slots.")
    smallest = min(limits, key=lambda one: one.slots)
    return SlotCount(smallest.slots, smallest.reason, () if timed else _doubts(smallest.slots, None))


def memory_plan(model: Model, gpu: Gpu, precision: str | None, capacity: int | None) -> MemoryPlan:
    """The memory of a bundle as built, or of a model in a precision; without one, in the precision that a build chooses.

    Raises ConfigError, BuildError or GpuError if there is none.
    """
    config = with_capacity(model.config, capacity or model.config.temporal.capacity)
    steps = config.temporal.capacity
    if precision is not None:
        return plan(config, parse_precision(precision), gpu, steps)
    if model.precision is not None:
        return plan(config, model.precision, gpu, steps, model.weights_nbytes)
    chosen = choose(config, target_of(gpu), shorten=capacity is None).plan
    assert isinstance(chosen, MemoryPlan)  # because the target is a GPU
    return chosen


def slots_in_time(path: Path) -> SlotCount:
    """The most conversations whose frames are in time at each length of context that `bench stages --out PATH` measured.

    Raises ConfigError if the file is not such a report, GpuError if not even one conversation is in time.
    """
    report = _read_report(path)
    frames = [row for row in report["rows"] if row["stage"] == FRAME]
    lengths = {row["context_steps"] for row in frames}
    slots = min(_in_time([row for row in frames if row["context_steps"] == steps]) for steps in lengths)
    if slots == 0:
        raise GpuError(
            f"{path}: not even one conversation is in time. Its frames take more than {FRAME_MS:g} ms (p99). "
            "Use another GPU or a smaller --precision."
        )
    at_ms = max(row["p99_ms"] for row in frames if row["slots"] == slots)
    device = report.get("machine", {}).get("device", "an unnamed device")
    return SlotCount(slots, f"frames measured on {device}: {at_ms:.0f} ms (p99) with {slots}, at most {FRAME_MS:g} ms")


def _in_time(rows: Sequence[Mapping[str, Any]]) -> int:
    """The largest number of conversations in time; a larger number does not count after one that was late."""
    best = 0
    for row in sorted(rows, key=lambda one: one["slots"]):
        if row["p99_ms"] > FRAME_MS:
            break
        best = row["slots"]
    return best


def _read_report(path: Path) -> dict[str, Any]:
    wrong = f"{path} is not a report with measured frames. Make one: pplex-export bench stages BUNDLE --out {path.name}"
    if not is_file(path):
        raise ConfigError(wrong)
    try:
        report = json.loads(read_text(path))
        rows = [
            (row["stage"], int(row["slots"]), int(row["context_steps"]), float(row["p99_ms"])) for row in report["rows"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(wrong) from error
    if not any(stage == FRAME for stage, *_ in rows):
        raise ConfigError(wrong)
    return dict(report)


def _doubts(slots: int, timed: SlotCount | None) -> tuple[str, ...]:
    """What the user should know about slots that no measured frame supports."""
    if timed is None:
        return (
            f"No frame time was given, so nothing shows that {slots} conversations are answered in time. Measure it on the "
            "GPU: pplex-export bench stages BUNDLE --out stages.json, then add --measured stages.json.",
        )
    if slots > timed.slots:
        return (f"--slots {slots} is more than the measured frames allow: {timed.slots} ({timed.reason}).",)
    return ()
