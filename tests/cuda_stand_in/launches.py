"""The launches of a frame on ONNX Runtime's CUDA provider, by graph and kernel. It needs no GPU and uses none.

    PYTHONPATH=tests .venv/bin/python -m cuda_stand_in.launches BUNDLE... [--slots N...] [--json]

It counts the nodes of the captured CUDA graphs. It measures no time.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cuda_stand_in.build import missing
from cuda_stand_in.process import Event, Kind, StandIn

Counts = dict[str, dict[str, int]]  # by kind, then by name
PLURALS = {Kind.KERNEL: "kernels", Kind.LIBRARY: "library calls", Kind.COPY: "copies and fills"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="launches", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--slots", nargs="+", type=int, default=[1], help="conversations in a frame")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if needed := missing():
        sys.exit(needed)
    stand_in = StandIn()
    found = {str(bundle): measure(stand_in, bundle, given.slots) for bundle in given.bundles}
    print(json.dumps(found) if given.json else "\n".join(line for one in found.items() for line in _table(*one)))


def measure(stand_in: StandIn, bundle: Path, batches: Sequence[int]) -> dict[str, Any]:
    """The result for a bundle: captured graphs, calls refused in captures, and for each number of slots the nodes of a
    frame's graphs ("graphs"), and the calls of its next run: their counts ("again"), and their names ("order")."""
    from pplex.runtime.bundle import open_bundle
    from pplex.runtime.stages import Stages

    stages = Stages(open_bundle(bundle), max(batches), device="cuda")
    captured = {name: executor.fixed_rings for name, executor in stages.executors.items()}
    result: dict[str, Any] = {"captured": captured, "refused": [], "frames": {}}
    for batch in batches:
        stand_in.take()
        stages.run_frame(batch)
        first = stand_in.take()
        stages.run_frame(batch)
        again = stand_in.take()
        in_order = [name for name in captured if captured[name]]
        graphs = {name: _counts(held) for name, held in zip(in_order, _captures(first), strict=True)}
        result["frames"][str(batch)] = {"graphs": graphs, "again": _counts(again), "order": [e.name for e in again]}
        result["refused"] += [event.name for event in (*first, *again) if event.kind is Kind.REFUSED]
    return result


def _captures(events: Iterable[Event]) -> list[list[Event]]:
    """The launches in each CUDA graph, in the order of the captures."""
    captures = list[list[Event]]()
    for event in events:
        if event.kind is Kind.CAPTURE:
            captures.append([])
        elif event.captured:
            captures[-1].append(event)
    return captures


def names(events: Sequence[Event]) -> list[str]:
    """What each event launched: a kernel's name without its namespace, or a function."""
    return _demangled([event.name for event in events])


def _counts(events: Sequence[Event]) -> Counts:
    launched = dict(zip((e.name for e in events), names(events), strict=True))
    counts: Counts = {}
    for (kind, name), count in Counter((event.kind.name, launched[event.name]) for event in events).most_common():
        counts.setdefault(kind, {})[name] = count
    return counts


def _demangled(names: Sequence[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [_shortened(name) for name in done.stdout.splitlines()]


def _shortened(signature: str) -> str:
    """The name of a kernel, and the operation of a generic kernel."""
    plain = signature.replace("(anonymous namespace)::", "").removeprefix("void ")
    operation = re.search(r"OP_(\w+)", plain)
    *spaces, name = re.split("[<(]", plain, maxsplit=1)[0].split("::")
    if name == "kernel":  # its namespace has the name
        name = "::".join([*spaces[-1:], name])
    return name + (f" {operation[1]}" if operation else "")


def _table(bundle: str, found: dict[str, Any]) -> Iterable[str]:
    for graph, captured in found["captured"].items():
        if not captured:
            yield f"{bundle}, {graph}: not captured, as some of its nodes run on the processor"
    for batch, frame in found["frames"].items():
        for graph, counts in frame["graphs"].items():
            totals = [f"{sum(counts.get(kind.name, {}).values())} {plural}" for kind, plural in PLURALS.items()]
            yield f"{bundle}, {graph}, slots: {batch}: {', '.join(totals)}"
            for kind in PLURALS:
                yield from (f"{count:8} {name}" for name, count in counts.get(kind.name, {}).items())


if __name__ == "__main__":
    main()
