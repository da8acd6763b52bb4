"""Times steps of a bundle in int4 with our kernel and with ONNX Runtime's, in turns.

    python benchmarks/kernels.py BUNDLE [OUT.json]

For each number of threads and of slots: medians of RUNS steps of both language graphs, and the time to read their weights
once, at the bandwidth that as many threads read between the steps.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pplex.bench.bandwidth import Bandwidth
from pplex.measure.machine import machine
from pplex.runtime.backend import open_to_run
from pplex.runtime.kernel_choice import AUTO, OFF, VARIABLE, chosen_kernel
from pplex.runtime.ort import available_threads
from pplex.runtime.parameters import step_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.stages import Stages

SLOTS = (1, 8, 32)
RUNS, POSITION = 12, 32
KINDS = {"kernel": AUTO, "onnxruntime": OFF}


def main() -> None:
    bundle = Path(sys.argv[1])
    with TemporaryDirectory(dir=bundle.parent) as folder:
        # A folder of links for each kind: a bundle caches the graphs of one kind.
        links = {kind: _links(bundle, Path(folder) / kind) for kind in KINDS}
        results = [one for threads in range(1, available_threads() + 1) for one in measured(links, threads)]
    os.environ[VARIABLE] = AUTO
    kernel = chosen_kernel()
    report = {
        "command": f"python benchmarks/kernels.py {bundle.name}",
        "machine": machine(None, "onnxruntime"),
        "instructions": kernel.level if kernel else None,
        "rows": results,
    }
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(report, indent=1) + "\n")


def measured(bundles: dict[str, Path], threads: int) -> list[dict[str, Any]]:
    """One row for each number of slots and each graph."""
    bandwidth, rows = Bandwidth(threads), list[dict[str, Any]]()
    stages = {kind: _stages(bundle, threads, KINDS[kind]) for kind, bundle in bundles.items()}
    opened = open_to_run(bundles["kernel"], "cpu")
    for slots in SLOTS:
        times, read = _in_turns(stages, slots, bandwidth)
        for graph, nbytes in step_nbytes(opened.config, opened.precision, opened.forms).items():
            row = {"graph": graph, "threads": threads, "slots": slots, "read GB/s": round(read / 1e9, 1)}
            row["floor ms"] = round(1000 * nbytes / read, 2)
            for kind in KINDS:
                row[f"{kind} ms"] = round(1000 * median(times[kind, graph]), 2)
                row[f"{kind} / floor"] = round(median(times[kind, graph]) * read / nbytes, 2)
            row["onnxruntime / kernel"] = round(median(times["onnxruntime", graph]) / median(times["kernel", graph]), 2)
            print(row, flush=True)
            rows.append(row)
    return rows


def _links(bundle: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in (path for path in bundle.iterdir() if path.is_file()):
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _stages(bundle: Path, threads: int, value: str) -> Stages:
    os.environ[VARIABLE] = value
    stages = Stages(open_to_run(bundle, "cpu"), slots=max(SLOTS), threads=threads, device="cpu")
    stages.position[:] = POSITION
    return stages


def _in_turns(
    stages: dict[str, Stages], slots: int, bandwidth: Bandwidth
) -> tuple[dict[tuple[str, str], list[float]], float]:
    times = {(kind, graph): list[float]() for kind in stages for graph in LANGUAGE_GRAPHS}
    read = list[float]()
    for run in range(RUNS + 1):
        read.append(bandwidth.measure())
        for graph in LANGUAGE_GRAPHS:
            for kind, one in stages.items():
                began = time.perf_counter()
                one.run(graph, slots)
                times[kind, graph] += [time.perf_counter() - began] if run else []  # the first run warms up
    return times, float(np.median(read))


if __name__ == "__main__":
    main()
