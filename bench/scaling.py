"""Times graphs for different numbers of slots, of ring entries in the KV cache, and of the processor's threads."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplex.measure.machine import machine
from pplex.measure.memory import peak_memory_mb
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.backend import open_to_run
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import host_view
from pplex.runtime.kv_cache import SHORTEST_RING, ring_lengths
from pplex.runtime.ort import available_threads
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.stages import Stages

WARM_UP_STEPS = 2
ROUNDS = 3  # sizes take turns, so a busy minute of the machine slows all of them

Seconds = dict[int, list[float]]  # by size


@dataclass(frozen=True)
class ScalingReport(BenchReport):
    """Also has the medians of `timings` as curves [axis][graph] of (size, milliseconds)."""

    curves: Mapping[str, Mapping[str, tuple[tuple[int, float], ...]]] = field(default_factory=dict)


def bench_scaling(
    bundle: Path, slots: int, steps: int, progress: Callable[[str], None] = lambda name: None
) -> ScalingReport:
    """Time `steps` steps of every graph by slots, and of the temporal transformer by entries of its ring and by threads.

    Slots are 1, 2, 4, ... up to `slots`, with short rings; ring lengths are those of the runtime. On the processor.
    """
    opened = open_to_run(bundle, "cpu")
    curves: dict[str, dict[str, tuple[tuple[int, float], ...]]] = {}
    timings: dict[str, Timing] = {}

    def add(axis: str, unit: str, graph: str, seconds: Seconds) -> None:
        found = {size: Timing.of(taken) for size, taken in seconds.items()}
        timings.update({f"{graph}, {size} {unit}": timing for size, timing in found.items()})
        curves.setdefault(axis, {})[graph] = tuple((size, timing.median_ms) for size, timing in found.items())

    stages = Stages(opened, slots, device="cpu")
    for graph in GRAPH_NAMES:
        progress(f"slots, {graph}")
        add("slots", "slots", graph, _by_slots(stages, graph, steps))
    progress("ring")
    add("ring", "entries of the ring", "temporal", _by_ring(stages, opened.config.temporal.capacity, steps))
    del stages
    progress("threads")
    add("threads", "threads", "temporal", _by_threads(opened, steps))
    figures: dict[str, Any] = {"steps": steps, "peak memory MB": peak_memory_mb()}
    for graph, curve in curves["slots"].items():
        alone = curve[0][1]
        figures |= {f"{graph}: {size} slots / 1 slot": round(ms / alone, 2) for size, ms in curve[1:]}
    return ScalingReport(
        f"scaling of {bundle.name}", timings, figures, machine(None, "onnxruntime", "numpy"), "ms a step", curves
    )


def _by_slots(stages: Stages, graph: str, steps: int) -> Seconds:
    sizes = [1 << i for i in range((stages.slots - 1).bit_length())] + [stages.slots]
    return _rounds({size: lambda size=size: stages.run(graph, size) for size in sizes}, steps)  # type: ignore[misc]


def _by_ring(stages: Stages, capacity: int, steps: int) -> Seconds:
    """Seconds of one slot at the last position of each ring length, one length after the other."""
    seconds = Seconds()
    for length in ring_lengths(capacity):
        stages.position[0] = length - 2
        stages.run("temporal", 1)
        for ring in stages.engines["temporal"].state.values():
            host_view(ring)[0] = 0.5  # all unwritten memory is one page of zeros, which is faster to read
        seconds |= _rounds({length: lambda: stages.run("temporal", 1)}, steps)
    stages.reset(0, capacity)
    return seconds


def _by_threads(bundle: Bundle, steps: int) -> Seconds:
    """Seconds by number of threads. Numbers are measured in turn, so memory holds only one copy of the weights."""
    seconds = Seconds()
    for threads in range(1, available_threads() + 1):
        stages = Stages(bundle, 1, threads, "cpu")
        stages.position[0] = SHORTEST_RING // 4
        seconds |= _rounds({threads: lambda stages=stages: stages.run("temporal", 1)}, steps)  # type: ignore[misc]
    return seconds


def _rounds(calls: Mapping[int, Callable[[], None]], steps: int) -> Seconds:
    seconds: Seconds = {size: [] for size in calls}
    for _ in range(ROUNDS):
        for size, call in calls.items():
            for _ in range(WARM_UP_STEPS):
                call()
            for _ in range(max(1, steps // ROUNDS)):
                began = time.perf_counter()
                call()
                seconds[size].append(time.perf_counter() - began)
    return seconds


def scaling_plots(report: ScalingReport) -> dict[str, bytes]:
    """An SVG of each axis, by file name. Needs matplotlib, which the `validate` extra installs."""
    from pplex.validate.report.plots import to_svg
    from pplex.validate.report.schema import Plot, Series

    labels = {"slots": "slots in one call", "ring": "entries of the ring", "threads": "threads"}
    return {
        f"{axis}.svg": to_svg(
            Plot(
                f"{report.title}: milliseconds a step",
                "line",
                labels[axis],
                "ms",
                tuple(
                    Series(graph, tuple(float(x) for x, _ in curve), tuple(y for _, y in curve))
                    for graph, curve in curves.items()
                ),
            ),
            axis,
        ).encode()
        for axis, curves in report.curves.items()
    }
