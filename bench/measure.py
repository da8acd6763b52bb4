"""What every measurement needs: a description of the machine, percentiles, memory and a table."""

import platform
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.ort import available_threads

WARM_UP_FRAMES = 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds a frame: median and 99th percentile."""

    median_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float] | npt.NDArray[np.floating[Any]]) -> "Timing":
        milliseconds = 1000 * np.asarray(seconds)
        return cls(round(float(np.median(milliseconds)), 3), round(float(np.percentile(milliseconds, 99)), 3))


@dataclass(frozen=True)
class BenchReport:
    """Timings by row, figures beside them, and where they were measured."""

    title: str
    timings: dict[str, Timing]
    figures: dict[str, Any]
    machine: dict[str, Any]
    unit: str = "ms a frame"  # of the timings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        width = max(map(len, (self.unit, *self.timings)))
        rows = [f"{name:<{width}}  {t.median_ms:>9.2f}  {t.p99_ms:>9.2f}" for name, t in self.timings.items()]
        facts = [f"{name}: {value}" for name, value in {**self.figures, **self.machine}.items()]
        header = [f"{self.unit:<{width}}  {'median':>9}  {'p99':>9}"] if rows else []
        return "\n".join([self.title, *header, *rows, *facts])


def machine(threads: int | None, *packages: str) -> dict[str, Any]:
    """Processor, threads and versions of the packages that are installed."""
    return {
        "processor": _processor_name(),
        "threads": threads or available_threads(),
        "python": platform.python_version(),
        **{package: found for package in packages if (found := _version(package))},
    }


def peak_memory_mb() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def resident_mb() -> float | None:
    """Resident size of this process now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return round(pages * resource.getpagesize() / 1e6, 1)


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
