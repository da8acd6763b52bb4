"""What a validation found, as data: report.json, which every other form of the report is made from."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pplex.runtime.errors import ReportError

SCHEMA = 1
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Tolerance:
    """What a measure may be: at most `limit`, or at least, if `least`; `reason` says why that much."""

    limit: float
    reason: str
    least: bool = False

    def allows(self, value: float | None) -> bool:
        if value is None or math.isnan(value):
            return False
        return value >= self.limit if self.least else value <= self.limit


@dataclass(frozen=True)
class Measure:
    """One number: `name` is unique in a report, `what` says in a sentence what was measured.

    `where` is the layer, codebook or frame that the value comes from. A value of None could not be had; without a tolerance
    it is for information only.
    """

    name: str
    value: float | None
    unit: str
    what: str
    tolerance: Tolerance | None = None
    where: str = ""

    @property
    def passed(self) -> bool:
        return self.tolerance is None or self.tolerance.allows(self.value)


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words under column names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


@dataclass(frozen=True)
class Series:
    """One line or row of a plot. Of `spans`, x are starts and y ends, in seconds."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """A picture: `kind` is line, bar (x counts the `ticks`) or spans (who speaks when)."""

    title: str
    kind: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False
    ticks: tuple[str, ...] = ()
    marks: tuple[tuple[float, str], ...] = ()  # vertical lines at x, with a word beside each


@dataclass(frozen=True)
class Section:
    """One question of the report; `notes` are sentences, also about what could not be measured and why."""

    key: str
    title: str
    question: str
    measures: tuple[Measure, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Measure, ...]:
        return tuple(measure for measure in self.measures if not measure.passed)


@dataclass(frozen=True)
class Report:
    """All sections, and what was compared with what, where."""

    made_by: str
    bundle: Mapping[str, Any]  # name, precision (graph -> name), engines (graph -> what runs it), checkpoint
    reference: Mapping[str, Any]  # name, and what it was run by
    settings: Mapping[str, Any]  # frames, recordings, seed, ...
    machine: Mapping[str, Any]
    sections: tuple[Section, ...]
    schema: int = field(default=SCHEMA)

    @property
    def measures(self) -> Iterator[Measure]:
        return (measure for section in self.sections for measure in section.measures)

    @property
    def failures(self) -> tuple[Measure, ...]:
        return tuple(measure for measure in self.measures if not measure.passed)

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON data, with the verdict beside what it follows from; a number that JSON lacks is its name."""
        verdict = {"passed": self.passed, "failures": [measure.name for measure in self.failures]}
        return _plain({"schema": self.schema, **verdict, **asdict(self)})

    @classmethod
    def from_dict(cls, data: Any) -> "Report":
        """What `to_dict` gave. Raises ReportError."""
        try:
            if data["schema"] != SCHEMA:
                raise ReportError(
                    f"A report of schema {data['schema']}, and this version reads {SCHEMA}: validate again."
                )
            sections = tuple(_section(section) for section in data["sections"])
            info = {key: data[key] for key in ("made_by", "bundle", "reference", "settings", "machine")}
            return cls(**info, sections=sections)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReportError(f"This is no report of a validation ({type(error).__name__}: {error}).") from error


def read_report(path: Path) -> Report:
    """The report in a file, or in a folder's report.json. Raises ReportError."""
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read: {error}. Make one: pplex-export validate --report FOLDER") from error
    try:
        return Report.from_dict(data)
    except ReportError as error:
        raise ReportError(f"{file}: {error}") from error


def _section(data: Mapping[str, Any]) -> Section:
    return Section(
        data["key"],
        data["title"],
        data["question"],
        tuple(_measure(measure) for measure in data["measures"]),
        tuple(Table(t["title"], tuple(t["columns"]), tuple(map(tuple, t["rows"]))) for t in data["tables"]),
        tuple(_plot(plot) for plot in data["plots"]),
        tuple(data["notes"]),
    )


def _measure(data: Mapping[str, Any]) -> Measure:
    given = data["tolerance"]
    value = None if data["value"] is None else float(data["value"])
    tolerance = given and Tolerance(float(given["limit"]), given["reason"], given["least"])
    return Measure(data["name"], value, data["unit"], data["what"], tolerance, data["where"])


def _plot(data: Mapping[str, Any]) -> Plot:
    series = tuple(Series(s["name"], tuple(map(float, s["x"])), tuple(map(float, s["y"]))) for s in data["series"])
    marks = tuple((float(x), word) for x, word in data["marks"])
    title, kind, x_label, y_label = (data[key] for key in ("title", "kind", "x_label", "y_label"))
    return Plot(title, kind, x_label, y_label, series, data["log_y"], tuple(data["ticks"]), marks)


def _plain(value: Any) -> Any:
    """JSON's types only: numpy's numbers become Python's; infinity and NaN, which JSON lacks, their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
