"""The report as data: report.json, from which HTML, Markdown and text are made.

Called by `bench`, `cli` and `validate`.
"""

import json
import math
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pplex.runtime.errors import ReportError
from pplex.runtime.files import check_readable, is_folder

SCHEMA = 1
REPORT_FILE = "report.json"
PLOT_KINDS = ("line", "bar", "spans")
NOT_FINITE = ("inf", "-inf", "nan")  # as JSON data


@dataclass(frozen=True)
class Tolerance:
    """The allowed values of a measure: at most `limit`, or at least `limit` if `least`. `reason` explains the limit."""

    limit: float
    reason: str
    least: bool = False

    def allows(self, value: float | None) -> bool:
        if value is None or math.isnan(value):
            return False
        value = float(value)  # compare in float64: a float32 value would round the limit
        return value >= self.limit if self.least else value <= self.limit


@dataclass(frozen=True)
class Measure:
    """One number: `name` is unique in a report, `what` describes it in a sentence.

    `where` is the layer, codebook or frame of the value. The value is None if it was not measured. A measure without a
    tolerance is for information only.
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
    """Rows of numbers and words, with column names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


@dataclass(frozen=True)
class Series:
    """One line or row of a plot. In `spans`, x are starts and y are ends, in seconds."""

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
    marks: tuple[tuple[float, str], ...] = ()  # vertical lines at x, with labels


@dataclass(frozen=True)
class Section:
    """One question of the report; `notes` are sentences, such as why a measure is missing."""

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
class Grade:
    """The verdict in the user's words: a word, its meaning, and the figures that decide (none for the best grade).

    heard: whether free conversations were part of it, not only steps with given tokens.
    """

    word: str
    meaning: str
    reasons: tuple[str, ...]
    heard: bool


@dataclass(frozen=True)
class Report:
    """All sections, the bundle, the reference and the machine; no grade if the figures for one are missing."""

    made_by: str
    bundle: Mapping[str, Any]  # name, precision (graph -> name), engines (graph -> kind), checkpoint
    reference: Mapping[str, Any]  # name, and what ran it
    settings: Mapping[str, Any]  # frames, recordings, seed, ...
    machine: Mapping[str, Any]
    sections: tuple[Section, ...]
    grade: Grade | None = None
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
        """JSON data with the verdict; infinity and NaN, which JSON lacks, are strings."""
        verdict = {"passed": self.passed, "failures": [measure.name for measure in self.failures]}
        return _plain({"schema": self.schema, **verdict, **asdict(self)})

    @classmethod
    def from_dict(cls, data: Any) -> "Report":
        """The report from the data of `to_dict`. Raises ReportError."""
        try:
            if data["schema"] != SCHEMA:
                raise ReportError(
                    f"The report has schema {_shown(data['schema'])}; this version reads schema {SCHEMA}. Validate again."
                )
            json.dumps(data, ensure_ascii=False).encode()  # a lone surrogate can be read but not written
            heads = (_mapping(data[key]) for key in ("bundle", "reference", "settings", "machine"))
            bundle, reference, settings, machine = heads
            sections = tuple(map(_section, _list(data["sections"])))
            _check_unique("section", [section.key for section in sections])
            _check_unique("measure", [measure.name for section in sections for measure in section.measures])
            grade = None if data.get("grade") is None else _grade(data["grade"])  # older reports have none
            return cls(_text(data["made_by"]), bundle, reference, settings, machine, sections, grade)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ReportError(f"This is not a validation report ({type(error).__name__}: {error}).") from error


def read_report(path: Path) -> Report:
    """The report in a file, or in a folder's report.json. Raises ReportError."""
    file = path / REPORT_FILE if is_folder(path) else path
    check_readable(file)
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            f"Cannot read {file}: {error}. Make a report: pplex-export validate --report FOLDER"
        ) from error
    try:
        return Report.from_dict(data)
    except ReportError as error:
        raise ReportError(f"{file}: {error}") from error


def _grade(data: Mapping[str, Any]) -> Grade:
    return Grade(_text(data["word"]), _text(data["meaning"]), _texts(data["reasons"]), _flag(data["heard"]))


def _section(data: Mapping[str, Any]) -> Section:
    return Section(
        _text(data["key"]),
        _text(data["title"]),
        _text(data["question"]),
        tuple(map(_measure, _list(data["measures"]))),
        tuple(map(_table, _list(data["tables"]))),
        tuple(map(_plot, _list(data["plots"]))),
        _texts(data["notes"]),
    )


def _measure(data: Mapping[str, Any]) -> Measure:
    value = None if data["value"] is None else _number(data["value"])
    tolerance = None if data["tolerance"] is None else _tolerance(data["tolerance"])
    name, unit, what, where = (_text(data[key]) for key in ("name", "unit", "what", "where"))
    return Measure(name, value, unit, what, tolerance, where)


def _tolerance(data: Mapping[str, Any]) -> Tolerance:
    return Tolerance(_number(data["limit"]), _text(data["reason"]), _flag(data["least"]))


def _table(data: Mapping[str, Any]) -> Table:
    columns = _texts(data["columns"])
    rows = tuple(tuple(map(_cell, _list(row))) for row in _list(data["rows"]))
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row of the table {_shown(data['title'])} does not have {len(columns)} cells")
    return Table(_text(data["title"]), columns, rows)


def _plot(data: Mapping[str, Any]) -> Plot:
    if data["kind"] not in PLOT_KINDS:
        raise ValueError(f"a plot of kind {_shown(data['kind'])}, not {', '.join(PLOT_KINDS)}")
    title, kind, x_label, y_label = (_text(data[key]) for key in ("title", "kind", "x_label", "y_label"))
    series = tuple(map(_series, _list(data["series"])))
    marks = tuple((_number(x), _text(word)) for x, word in _list(data["marks"]))
    return Plot(title, kind, x_label, y_label, series, _flag(data["log_y"]), _texts(data["ticks"]), marks)


def _series(data: Mapping[str, Any]) -> Series:
    x, y = (tuple(map(_number, _list(data[key]))) for key in ("x", "y"))
    if len(x) != len(y):
        raise ValueError(f"the series {_shown(data['name'])} has {len(x)} x and {len(y)} y")
    return Series(_text(data["name"]), x, y)


def _check_unique(what: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"more than one {what} named {_shown(twice)}")


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, _list(value)))


def _text(value: Any) -> str:
    return str(_of(str, value))


def _flag(value: Any) -> bool:
    return bool(_of(bool, value))


def _list(value: Any) -> list[Any]:
    return list(_of(list, value))


def _mapping(value: Any) -> dict[str, Any]:
    return dict(_of(dict, value))


def _number(value: Any) -> float:
    """A number, or one of NOT_FINITE as a string."""
    return float(value if value in NOT_FINITE else _of((int, float), value))


def _cell(value: Any) -> str | float | int | None:
    """A cell; one of NOT_FINITE becomes the number."""
    if isinstance(value, int | float):
        return value if math.isfinite(float(value)) else float(value)
    return float(value) if value in NOT_FINITE else None if value is None else _text(value)


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{_shown(value)} has the wrong type here")
    return value


def _shown(value: Any) -> str:
    """A short text that is safe to print."""
    return ascii(reprlib.repr(value))[1:-1]


def _plain(value: Any) -> Any:
    """The value in JSON types: numpy numbers become Python's numbers, infinity and NaN become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
