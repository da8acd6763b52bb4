"""Loads a bundle in fresh processes, one after the other: time to the first spoken frame, and memory.

python -m pplex.bench.load SPAWNED JSON      runs in such a process: prints the result of `load_and_speak`
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplex.bench.frame import ENGINES
from pplex.measure.conversation import usual_prompt
from pplex.measure.machine import machine
from pplex.measure.memory import peak_memory_mb, status_mb
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.errors import EngineError, PplexError

RUNS = 3
# name of a timing -> key in a process's report, in seconds since its start
MOMENTS = {"imported": "imported_s", "loaded": "loaded_s", "opened": "opened_s", "first spoken frame": "spoken_s"}


@dataclass(frozen=True)
class LoadOptions:
    """Arguments of `Runtime.load` in the process."""

    bundle: str
    slots: int
    threads: int | None
    device: str | None


def bench_load(
    bundle: Path,
    slots: int = 1,
    runs: int = RUNS,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[str], object] = lambda name: None,
) -> BenchReport:
    """Load `bundle` once and then `runs` more times, each in a new process that speaks one frame.

    The first load warms the disk cache, and caches the weights in the processor's layout if necessary.
    `threads` and `device` as in `Runtime`. Raises EngineError if a process fails.
    """
    options = LoadOptions(str(bundle), slots, threads, device)
    progress("first")
    before = kept_files(bundle)
    first = _measured(options)
    made = {name: nbytes for name, nbytes in kept_files(bundle).items() if name not in before}
    later = list[dict[str, Any]]()
    for i in range(runs):
        progress(f"{i + 1} of {runs}")
        later.append(_measured(options))
    timings = {f"first load: {name}": Timing.of([first[key]]) for name, key in MOMENTS.items()}
    timings |= {f"later loads: {name}": Timing.of([run[key] for run in later]) for name, key in MOMENTS.items()}
    weights = weights_mb(bundle)
    figures = {
        "slots": slots,
        "loads after the first": runs,
        "device": first["device"],
        "MB of weights": weights,
        "MB cached by earlier loads": _mb(sum(before.values())),
        "MB cached by the first load": _mb(sum(made.values())),
        **{f"first load: {name}": value for name, value in _memory([first], weights).items()},
        **{f"later loads: {name}": value for name, value in _memory(later, weights).items()},
    }
    return BenchReport(
        f"load of {bundle.name}", timings, figures, machine(threads, *ENGINES, "numpy"), "ms since start"
    )


def kept_files(bundle: Path) -> dict[str, int]:
    """Sizes in bytes of the files that loads have cached in a bundle, by name: processor and content."""
    from pplex.runtime.bundle import CACHES_FOLDER

    folder = bundle / CACHES_FOLDER
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}


def weights_mb(bundle: Path) -> float:
    """Size of the bundle's engine and weight files."""
    from pplex.runtime.backend import engines_nbytes
    from pplex.runtime.bundle import open_bundle

    return _mb(engines_nbytes(open_bundle(bundle, verify=False).manifest))


def _memory(runs: Sequence[Mapping[str, Any]], weights: float) -> dict[str, float | None]:
    """Maxima over all runs; None where the system does not report the value."""

    def most(key: str) -> float | None:
        found = [run[key] for run in runs if run[key] is not None]
        return max(found) if found else None

    peak = most("peak_mb")
    return {
        "peak MB": peak,
        "peak / weights": None if peak is None else round(peak / weights, 2),
        "MB of private memory after loading": most("anonymous_mb"),
        "MB of mapped files after loading": most("mapped_mb"),
    }


def _measured(options: LoadOptions) -> dict[str, Any]:
    """The report of one process. `time.monotonic` is one clock for all processes of the system."""
    command = [sys.executable, "-m", "pplex.bench.load", repr(time.monotonic()), json.dumps(asdict(options))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise EngineError("\n".join(lines) if done.returncode == FAILED else _ended(options, done.returncode, lines))
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _ended(options: LoadOptions, code: int, lines: Sequence[str]) -> str:
    why = f"was killed by signal {-code}, maybe for lack of memory" if code < 0 else f"ended with exit code {code}"
    return "\n".join([f"The process that loaded {options.bundle} {why}.", *lines[-5:]])


# In the new process.

FAILED = 3  # exit code for a PplexError; its message is on standard error


def load_and_speak(options: LoadOptions, spawned_s: float) -> dict[str, Any]:
    """Seconds from `spawned_s` to each of MOMENTS, and memory."""
    from pplex.runtime.session import Runtime

    imported_s = time.monotonic()
    runtime = Runtime.load(options.bundle, slots=options.slots, threads=options.threads, device=options.device)
    loaded_s, loaded = time.monotonic(), status_mb()
    session = runtime.open(*usual_prompt(runtime.bundle), seed=0)
    opened_s = time.monotonic()
    session.step(np.zeros(runtime.config.frame_size, np.float32))
    moments = imported_s, loaded_s, opened_s, time.monotonic()
    return {
        **{key: moment - spawned_s for key, moment in zip(MOMENTS.values(), moments, strict=True)},
        "device": runtime.stages.device.name,
        "anonymous_mb": loaded.get("RssAnon"),
        "mapped_mb": loaded.get("RssFile"),
        # Not ru_maxrss, which a child inherits from its parent: VmHWM is the process's own.
        "peak_mb": status_mb().get("VmHWM", float(peak_memory_mb())),
    }


def _mb(nbytes: int) -> float:
    return round(nbytes / 1e6, 1)


def _main(spawned: str, options: str) -> int:
    try:
        print(json.dumps(load_and_speak(LoadOptions(**json.loads(options)), float(spawned))))
    except PplexError as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
