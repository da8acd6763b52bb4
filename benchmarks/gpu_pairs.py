"""Times variants of a bundle's graphs, which take turns in one process: called by the steps of benchmarks/gpu.py.

    python gpu_pairs.py --graph temporal --slots 8 --seconds 15 --out OUT --variant mask MASKED --variant lengths BUNDLE

A variant has a name, a bundle, and settings KEY=VALUE for ONNX Runtime: see gpu_variants.session_settings. The same clock,
temperature and neighbours act on all variants, so their ratio says more than their times. OUT is saved after each point;
an existing one is resumed.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu_variants import Variant

from pplex.runtime.files import write_files

CALLS = 20  # of one turn
Point = tuple[str, int, int]  # graph, slots, context steps


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """All rows, and the facts about each variant."""
    result: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"pairs": []}
    variants = {name: variant(folder, settings, asked) for name, folder, *settings in asked.variant}
    result["variants"] = {name: one.facts for name, one in variants.items()}
    done = {(row["graph"], row["slots"], row["context_steps"]) for row in result["pairs"]}
    for point in points(asked, min(one.capacity for one in variants.values())):
        if point not in done:
            result["pairs"] += compare(variants, point, asked.seconds)
            save(asked.out, result)
    for one in variants.values():  # last: a profiler may slow down later measurements
        one.facts["kernels"] = one.kernels()
    save(asked.out, result)
    return result


def variant(folder: str, settings: Sequence[str], asked: argparse.Namespace) -> Variant:
    changed = dict(text.split("=", 1) for text in settings)
    return Variant(Path(folder), changed, asked.graph, max(asked.slots), asked.device)


def points(asked: argparse.Namespace, capacity: int) -> list[Point]:
    """The least slots first. Of two contexts one fills a tenth of the ring, the other all of it."""
    contexts = [capacity] if asked.contexts == 1 else [capacity // 10, capacity]
    return [(graph, slots, steps) for slots in sorted(asked.slots) for steps in contexts for graph in asked.graph]


def compare(variants: Mapping[str, Variant], point: Point, seconds: float) -> Iterator[dict[str, Any]]:
    """The row of each variant, after `seconds` of turns."""
    calls = {name: one.prepare(*point) for name, one in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + seconds
    while not all(times.values()) or time.monotonic() < end:
        for name, call in calls.items():
            times[name] += variants[name].turn(call, CALLS)
    for name, taken in times.items():
        p50, p95 = (round(float(p), 4) for p in np.percentile(taken, (50, 95)))
        where = dict(zip(("graph", "slots", "context_steps"), point, strict=True))
        yield {**where, "variant": name, "p50_ms": p50, "p95_ms": p95, "calls": len(taken)}


def save(out: Path, result: Mapping[str, Any]) -> None:
    write_files({str(out): json.dumps(result, indent=1).encode()})


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_pairs.py", description="Time variants of graphs in turns.")
    parser.add_argument("--variant", nargs="+", action="append", required=True, metavar="NAME BUNDLE KEY=VALUE")
    parser.add_argument("--graph", action="append", required=True)
    parser.add_argument("--slots", type=int, action="append", required=True)
    parser.add_argument("--contexts", type=int, choices=(1, 2), default=1, help="1: a full ring; 2: also a tenth of it")
    parser.add_argument("--seconds", type=float, required=True, help="of each graph, number of slots and context")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(words)


if __name__ == "__main__":
    run(arguments(sys.argv[1:]))
