"""Times a frame by stage for different numbers of conversations and context steps, with lower bounds.

Backends: a bundle's engines (engine_backend.py), our torch modules (torch_backend.py), the package moshi (moshi_backend.py).
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
from pplex.measure.tables import aligned
from pplex.runtime.config import ModelConfig
from pplex.runtime.device import Call, buffer_nbytes
from pplex.runtime.engine import fixed_shape
from pplex.runtime.errors import GpuMemoryError, OutputError
from pplex.runtime.files import write_files
from pplex.runtime.forms import NO_FORMS, Forms
from pplex.runtime.graphs import graph_specs
from pplex.runtime.parameters import step_nbytes, weights_nbytes

FRAME = "frame"  # the row of a whole frame: all stages, uploads and downloads
CONTEXT_STEPS = (0, 1000, 3000, 6000)  # the ring is empty, a third full, full, and overwritten once
LIMIT_MS = 80.0  # for a frame of all conversations: the next frame arrives after 80 ms
WARM_UP_FRAMES = 10


@dataclass(frozen=True)
class Row:
    """One stage of a frame of `slots` conversations with `context_steps` steps behind them.

    `floor_ms`: the shortest time to move the bytes of the stage; `kernels`: launches on the GPU. None if unknown.
    """

    slots: int
    context_steps: int
    stage: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    floor_ms: float | None = None
    kernels: int | None = None


@dataclass(frozen=True)
class SweepReport:
    """Rows in the order of measurement, other figures, and the machine."""

    title: str
    rows: tuple[Row, ...]
    figures: dict[str, Any]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        head = ("slots", "context steps", "stage", "p50 ms", "p95 ms", "p99 ms", "floor ms", "kernels")
        cells = [head, *(tuple(_text(value) for value in asdict(row).values()) for row in self.rows)]
        facts = [f"{name}: {value}" for name, value in {**self.figures, **self.machine}.items()]
        return "\n".join([self.title, aligned(cells, right=range(len(head))), *facts])


@dataclass(frozen=True)
class SweepOptions:
    """The points of a sweep: up to `slots` conversations, with each number of `context_steps`, `frames` frames a point.

    `device`: cuda, cpu, or None for a GPU if the machine has one. `out`: the file in which the report is saved.
    """

    slots: int
    context_steps: tuple[int, ...]
    frames: int
    device: str | None = None
    out: Path | None = None


class BenchBackend(Protocol):
    """A model on a device that can compute a frame of several conversations."""

    title: str

    @property
    def device(self) -> Clock: ...

    slots: int  # the most conversations that fit
    machine: Mapping[str, Any]
    figures: Mapping[str, Any]  # further facts for the report

    def prepare(self, slots: int, context_steps: int) -> Mapping[str, Call]:
        """Give `slots` conversations `context_steps` steps of context; returns the calls of their next frame, by stage.

        A call can be repeated: it computes the same step again. Raises GpuMemoryError.
        """

    def frame(self, slots: int) -> None:
        """Compute the frame as in a conversation; returns when the results are in the host's memory."""

    def floor_ms(self, slots: int, context_steps: int) -> Mapping[str, float]:
        """Lower bound of each stage: the bytes it must move, divided by the bandwidth measured in this run."""

    def kernels(self, calls: Mapping[str, Call]) -> Mapping[str, int]:
        """Kernels that each call launches; empty if they cannot be counted."""


def sweep(backend: BenchBackend, options: SweepOptions, limit_ms: float = LIMIT_MS) -> SweepReport:
    """Measure `backend` with 1, 2, 4, ... slots until the median frame exceeds `limit_ms` or memory is full.

    The report is saved in `options.out` after each point; an existing one is resumed. Raises OutputError.
    """
    frames, out = options.frames, options.out
    report = _continued(backend, frames, out)
    for length in options.context_steps:
        for slots in _batch_sizes(backend.slots):
            point = [row for row in report.rows if (row.slots, row.context_steps) == (slots, length)]
            if not point:
                try:
                    point = list(_measure(backend, slots, length, frames))
                except (GpuMemoryError, MemoryError) as error:
                    report.figures[f"{length} context steps, {slots} slots"] = f"no room: {error}"
                    break
                report = replace(report, rows=(*report.rows, *point))
                _write(report, out)
            # Not p99, which one hiccup of the machine decides. The report has p99 for every point.
            if next(row.p50_ms for row in point if row.stage == FRAME) > limit_ms:
                break
    return _counted(backend, report, out)


def _batch_sizes(most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]


def _measure(backend: BenchBackend, slots: int, context_steps: int, frames: int) -> Iterator[Row]:
    calls = backend.prepare(slots, context_steps)
    stages: dict[str, list[float]] = {name: [] for name in calls}
    whole = list[float]()
    for frame in range(WARM_UP_FRAMES + frames):
        taken = _by_stage(backend, calls)
        began = time.perf_counter()
        backend.frame(slots)
        whole_ms = 1000 * (time.perf_counter() - began)
        if frame >= WARM_UP_FRAMES:
            whole.append(whole_ms)
            for name, milliseconds in taken.items():
                stages[name].append(milliseconds)
    floors = dict(backend.floor_ms(slots, context_steps))
    if floors:
        floors[FRAME] = sum(floors.values())
    for name, timed in {**stages, FRAME: whole}.items():
        p50, p95, p99 = (round(float(p), 4) for p in np.percentile(timed, (50, 95, 99)))
        yield Row(slots, context_steps, name, p50, p95, p99, floors.get(name) and round(floors[name], 4))


def _by_stage(backend: BenchBackend, calls: Mapping[str, Call]) -> dict[str, float]:
    marks = [backend.device.mark()]
    for call in calls.values():
        call()
        marks.append(backend.device.mark())
    backend.device.synchronize()
    return {name: backend.device.elapsed_ms(*pair) for name, pair in zip(calls, pairwise(marks), strict=True)}


def _counted(backend: BenchBackend, report: SweepReport, out: Path | None) -> SweepReport:
    """The report with kernels in every row. This comes last: a profiler may slow down later measurements."""
    found: dict[tuple[int, str], int] = {}
    for slots in dict.fromkeys(row.slots for row in report.rows if row.kernels is None):
        counts = backend.kernels(backend.prepare(slots, 0))
        if not counts:
            break
        found |= {(slots, stage): count for stage, count in counts.items()} | {(slots, FRAME): sum(counts.values())}
    rows = (replace(row, kernels=found.get((row.slots, row.stage), row.kernels)) for row in report.rows)
    report = replace(report, rows=tuple(rows))
    _write(report, out)
    return report


def _continued(backend: BenchBackend, frames: int, out: Path | None) -> SweepReport:
    """The report in `out`, or a new one."""
    new = SweepReport(
        backend.title, (), {"frames": frames, "most slots": backend.slots, **backend.figures}, dict(backend.machine)
    )
    if out is None or not out.exists():
        return new
    try:
        found = json.loads(out.read_text())
        same = (found["title"], found["machine"], found["figures"]["frames"]) == (new.title, new.machine, frames)
        rows = tuple(Row(**row) for row in found["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{out} is not a report of this benchmark: give --out a new file.") from error
    if not same:
        raise OutputError(
            f"{out} is a report of {found['title']}, measured with other settings: give --out another file."
        )
    earlier = {
        "earlier runs": [*found["figures"].pop("earlier runs", []), found["figures"]]
    }  # each backend has its own bandwidth
    return replace(new, rows=rows, figures=new.figures | earlier)


def _write(report: SweepReport, out: Path | None) -> None:
    if out is not None:
        write_files({str(out): json.dumps(report.to_dict(), indent=1).encode()})


def moved_nbytes(
    config: ModelConfig, precision: Mapping[str, str], slots: int, context_steps: int, forms: Forms = NO_FORMS
) -> dict[str, int]:
    """The least bytes that a frame moves, by graph: its weights once, and the KV cache of each of `slots` conversations.

    Embeddings do not count, because only single rows are read. Activations do not count, because they stay in caches.
    """
    weights = weights_nbytes(config, precision) | step_nbytes(config, precision, forms)
    steps = {"temporal": context_steps} | dict.fromkeys(
        ("mimi_encode", "mimi_decode"), config.mimi.steps_per_frame * context_steps
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
