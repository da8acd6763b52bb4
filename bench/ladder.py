"""A frame stage by stage, by conversations at once and by what each of them remembers, beside the least it can take.

What is measured is a `Side`: a bundle's engines (stages.py), our torch modules (torch_side.py), or a peer (moshi_side.py).
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pplex.bench.clock import Clock
from pplex.runtime.config import ModelConfig
from pplex.runtime.device import Call, buffer_nbytes
from pplex.runtime.engine import fixed_shape
from pplex.runtime.errors import GpuMemoryError, OutputError
from pplex.runtime.files import write_files
from pplex.runtime.graphs import graph_specs
from pplex.runtime.parameters import step_nbytes, weights_nbytes

FRAME = "frame"  # the row of all stages, with what is uploaded and downloaded, until the host has it
REMEMBERED = (0, 1000, 3000, 6000)  # steps: a ring that is empty, a third full, full, and full for the second time
LIMIT_MS = 80.0  # what a frame of all conversations may take: the next one is there by then
WARM_UP_FRAMES = 10


@dataclass(frozen=True)
class Row:
    """One stage of a frame of `slots` conversations that remember `remembered` steps each.

    `floor_ms` is how long moving what must be moved takes, `kernels` what is launched on the GPU; None where not known.
    """

    slots: int
    remembered: int
    stage: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    floor_ms: float | None = None
    kernels: int | None = None


@dataclass(frozen=True)
class LadderReport:
    """Rows in the order they were measured, figures beside them, and where."""

    title: str
    rows: tuple[Row, ...]
    figures: dict[str, Any]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        head = ("slots", "remembered", "stage", "p50 ms", "p95 ms", "p99 ms", "floor ms", "kernels")
        cells = [head, *(tuple(_text(value) for value in asdict(row).values()) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
        facts = [f"{name}: {value}" for name, value in {**self.figures, **self.machine}.items()]
        return "\n".join([self.title, *lines, *facts])


@dataclass(frozen=True)
class Extent:
    """How far a side is measured: up to `slots` conversations at once, at each of the lengths `remembered`, `frames` a rung.

    `device` is cuda, cpu, or None for what there is; `out` a file in which the report is kept.
    """

    slots: int
    remembered: tuple[int, ...]
    frames: int
    device: str | None = None
    out: Path | None = None


class Side(Protocol):
    """Something that takes conversations through a frame, on a device of its own."""

    title: str

    @property
    def device(self) -> Clock: ...

    slots: int  # the most conversations it has room for
    machine: Mapping[str, Any]
    figures: Mapping[str, Any]  # whatever else is to be known about it

    def prepare(self, slots: int, remembered: int) -> Mapping[str, Call]:
        """Make `slots` conversations remember `remembered` steps; what their next frame enqueues, by stage in order.

        Each call can be made again and again, for the same step. Raises GpuMemoryError where there is no room.
        """

    def frame(self, slots: int) -> None:
        """That frame as it is made in a conversation: returns when the host has what comes of it."""

    def floor_ms(self, slots: int, remembered: int) -> Mapping[str, float]:
        """The least a stage can take, by stage: bytes that must be moved over the bandwidth measured in this run."""

    def kernels(self, calls: Mapping[str, Call]) -> Mapping[str, int]:
        """How many kernels each call launches; nothing where that cannot be told."""


def climb(side: Side, extent: Extent, limit_ms: float = LIMIT_MS) -> LadderReport:
    """Measure `side` with 1, 2, 4, ... slots until a frame mostly takes more than `limit_ms` or there is no more room.

    In `extent.out` the report so far is there after every rung, and one that is there already is continued. Raises
    OutputError where that cannot be.
    """
    frames, out = extent.frames, extent.out
    report = _continued(side, frames, out)
    for length in extent.remembered:
        for slots in _rungs(side.slots):
            rung = [row for row in report.rows if (row.slots, row.remembered) == (slots, length)]
            if not rung:
                try:
                    rung = list(_measure(side, slots, length, frames))
                except (GpuMemoryError, MemoryError) as error:
                    report.figures[f"{length} remembered, {slots} slots"] = f"no room: {error}"
                    break
                report = replace(report, rows=(*report.rows, *rung))
                _write(report, out)
            # Not its p99, which one hiccup of the machine decides: it is told of every rung.
            if next(row.p50_ms for row in rung if row.stage == FRAME) > limit_ms:
                break
    return _counted(side, report, out)


def _rungs(most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]


def _measure(side: Side, slots: int, remembered: int, frames: int) -> Iterator[Row]:
    calls = side.prepare(slots, remembered)
    stages: dict[str, list[float]] = {name: [] for name in calls}
    whole = list[float]()
    for frame in range(WARM_UP_FRAMES + frames):
        taken = _by_stage(side, calls)
        began = time.perf_counter()
        side.frame(slots)
        whole_ms = 1000 * (time.perf_counter() - began)
        if frame >= WARM_UP_FRAMES:
            whole.append(whole_ms)
            for name, milliseconds in taken.items():
                stages[name].append(milliseconds)
    floors = dict(side.floor_ms(slots, remembered))
    if floors:
        floors[FRAME] = sum(floors.values())
    for name, timed in {**stages, FRAME: whole}.items():
        p50, p95, p99 = (round(float(p), 4) for p in np.percentile(timed, (50, 95, 99)))
        yield Row(slots, remembered, name, p50, p95, p99, floors.get(name) and round(floors[name], 4))


def _by_stage(side: Side, calls: Mapping[str, Call]) -> dict[str, float]:
    marks = [side.device.mark()]
    for call in calls.values():
        call()
        marks.append(side.device.mark())
    side.device.synchronize()
    return {name: side.device.elapsed_ms(*pair) for name, pair in zip(calls, pairwise(marks), strict=True)}


def _counted(side: Side, report: LadderReport, out: Path | None) -> LadderReport:
    """With the kernels in every row. Last of all: a profiler that has been used may slow down what comes after it."""
    found: dict[tuple[int, str], int] = {}
    for slots in dict.fromkeys(row.slots for row in report.rows if row.kernels is None):
        counts = side.kernels(side.prepare(slots, 0))
        if not counts:
            break
        found |= {(slots, stage): count for stage, count in counts.items()} | {(slots, FRAME): sum(counts.values())}
    rows = (replace(row, kernels=found.get((row.slots, row.stage), row.kernels)) for row in report.rows)
    report = replace(report, rows=tuple(rows))
    _write(report, out)
    return report


def _continued(side: Side, frames: int, out: Path | None) -> LadderReport:
    """The report in `out`, or a new one."""
    new = LadderReport(side.title, (), {"frames": frames, "most slots": side.slots, **side.figures}, dict(side.machine))
    if out is None:
        return new
    if not out.exists():
        return new
    try:
        found = json.loads(out.read_text())
        same = (found["title"], found["machine"], found["figures"]["frames"]) == (new.title, new.machine, frames)
        rows = tuple(Row(**row) for row in found["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{out} is no report of a bench: give --out a file that is not there yet.") from error
    if not same:
        raise OutputError(f"{out} is a report of {found['title']}, measured otherwise: give --out another file.")
    earlier = {
        "earlier runs": [*found["figures"].pop("earlier runs", []), found["figures"]]
    }  # each has its own bandwidth
    return replace(new, rows=rows, figures=new.figures | earlier)


def _write(report: LadderReport, out: Path | None) -> None:
    if out is not None:
        write_files({str(out): json.dumps(report.to_dict(), indent=1).encode()})


def moved_nbytes(config: ModelConfig, precision: Mapping[str, str], slots: int, remembered: int) -> dict[str, int]:
    """Bytes a frame must move at least, by graph: its weights once, and what each of `slots` conversations remembers.

    Of embeddings only rows are read, which are not counted, nor are activations: they stay in caches.
    """
    weights = weights_nbytes(config, precision) | step_nbytes(config, precision)
    steps = {"temporal": remembered} | dict.fromkeys(
        ("mimi_encode", "mimi_decode"), config.mimi.steps_per_frame * remembered
    )
    moved = dict[str, int]()
    for graph, spec in graph_specs(config, precision).items():
        entries = 0
        for ring in (state for state in spec.state if state.ring):
            _, heads, _, dim = shape = fixed_shape(ring.shape, {"B": 1, "C": config.temporal.capacity})
            entries += min(steps[graph], shape[2]) * buffer_nbytes((heads, dim), ring.dtype)
        moved[graph] = weights[graph] + slots * entries
    return moved


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
