"""Times every operator of every graph with ONNX Runtime's profiler."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pplex.measure.conversation import WARM_UP_FRAMES
from pplex.measure.machine import machine
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.backend import host_backend, open_to_run
from pplex.runtime.device import HostDevice
from pplex.runtime.ort import OnnxRuntimeExecutor
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.session import Runtime

LEAST_SHARE = 0.01  # of a graph's time; operators below it are summed in one row

OTHERS = "all others"


def profile_frame(bundle: Path, sessions: int, frames: int, threads: int | None) -> BenchReport:
    """Milliseconds for each graph and its operators in a frame, on the processor, with all sessions speaking at once.

    Profiling adds more than ten microseconds for each node; a graph's own row includes them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        backend = host_backend(HostDevice(), threads, Path(scratch))
        runtime = Runtime(open_to_run(bundle, "cpu"), slots=sessions, device=backend)
        opened = [runtime.open(seed=seed) for seed in range(sessions)]
        noise = np.random.default_rng(0).normal(0, 0.05, (frames, runtime.config.frame_size)).astype(np.float32)
        for pcm in np.concatenate([noise[:WARM_UP_FRAMES], noise]):
            runtime.step(dict.fromkeys(opened, pcm))
        rows = dict[str, Timing]()
        for graph in GRAPH_NAMES:
            executor = runtime.stages.executors[graph]
            assert isinstance(executor, OnnxRuntimeExecutor)
            rows |= _rows(graph, json.loads(executor.end_profile().read_text()), frames)
    figures = {"sessions": sessions, "frames": frames}
    return BenchReport(f"operators of {bundle.name}", rows, figures, machine(threads, "onnxruntime"))


def _rows(graph: str, events: list[dict[str, Any]], frames: int) -> dict[str, Timing]:
    """The graph's row, then a row for each operator above LEAST_SHARE, the slowest first."""
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")[
        -frames:
    ]
    starts = np.array([start for start, _ in runs])
    seconds: dict[str, Any] = defaultdict(lambda: np.zeros(len(runs)))
    nodes: dict[str, int] = defaultdict(int)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= starts[0]:
            operator = event["args"]["op_name"]
            run = int(np.searchsorted(starts, event["ts"], "right")) - 1
            seconds[operator][run] += event["dur"] / 1e6
            nodes[operator] += 1
    whole = np.array([end - start for start, end in runs]) / 1e6
    small = [name for name, taken in seconds.items() if np.median(taken) < LEAST_SHARE * np.median(whole)]
    if small:
        seconds[OTHERS] = sum(seconds.pop(name) for name in small)
        nodes[OTHERS] = sum(nodes[name] for name in small)
    ranked = sorted(seconds.items(), key=lambda item: -float(np.median(item[1])))
    return {graph: Timing.of(whole)} | {
        f"  {graph}: {name} x {round(nodes[name] / len(runs))}": Timing.of(taken) for name, taken in ranked
    }
