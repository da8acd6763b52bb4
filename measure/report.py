"""A report of timings: median and 99th percentile by row, figures, and the machine. Called by `bench`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.measure.tables import aligned


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median and 99th percentile."""

    median_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float] | npt.NDArray[np.floating[Any]]) -> "Timing":
        milliseconds = 1000 * np.asarray(seconds)
        return cls(round(float(np.median(milliseconds)), 3), round(float(np.percentile(milliseconds, 99)), 3))


@dataclass(frozen=True)
class BenchReport:
    """Timings by row, other figures, and the machine."""

    title: str
    timings: dict[str, Timing]
    figures: dict[str, Any]
    machine: dict[str, Any]
    unit: str = "ms a frame"  # of the timings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        rows = [(name, f"{t.median_ms:.2f}", f"{t.p99_ms:.2f}") for name, t in self.timings.items()]
        table = [aligned([(self.unit, "median", "p99"), *rows], right=(1, 2))] if rows else []
        facts = [f"{name}: {value}" for name, value in {**self.figures, **self.machine}.items()]
        return "\n".join([self.title, *table, *facts])
