"""A report as data: written reports are read again, and other data is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import clean, graded, hostile, other, realistic

from pplex.runtime.errors import ReportError
from pplex.validate.report.schema import SCHEMA, Measure, Plot, Report, Section, Series, Table, Tolerance, read_report

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["inf", "-inf", "nan", "line"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def again(report: Report) -> Report:
    return Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))


def only(*measures: Measure, **parts: Any) -> Report:
    return Report("test", {}, {}, {}, {}, (Section("s", "S", "Is it so?", measures, **parts),))


@pytest.mark.parametrize("make", [realistic, clean, other, hostile, graded])
def test_a_written_report_reads_back(make: Any) -> None:
    """Compare as data: NaN equals NaN."""
    report = make()
    assert again(report).to_dict() == report.to_dict()
    assert again(report).passed is report.passed is (make is clean)
    assert [m.name for m in again(report).failures] == report.to_dict()["failures"]


def test_a_report_of_an_older_version_has_no_grade() -> None:
    older = {key: value for key, value in graded().to_dict().items() if key != "grade"}
    assert again(graded()).grade == graded().grade and Report.from_dict(older).grade is None


def test_infinity_nan_and_numpy_numbers_read_back() -> None:
    table = Table("t", ("a", "b"), ((np.float64("inf"), "word"), (math.nan, np.int64(3)), (-math.inf, None)))
    series = Series("s", (np.float32(0.5), 1), (math.nan, math.inf))
    plot = Plot("p", "line", "x", "y", (series,), marks=((np.int8(1), "m"),))
    measure = Measure("m", np.float32(0.25), "", "", Tolerance(math.inf, "anything"))
    section = again(only(measure, Measure("n", math.nan, "", ""), tables=(table,), plots=(plot,))).sections[0]
    rows, read = section.tables[0].rows, section.plots[0].series[0]
    assert [m.value for m in section.measures[:1]] == [0.25] and math.isnan(section.measures[1].value or 0)
    assert section.measures[0].tolerance == Tolerance(math.inf, "anything")
    assert rows[0] == (math.inf, "word") and math.isnan(float(rows[1][0] or 0)) and rows[2] == (-math.inf, None)
    assert rows[1][1] == 3 and isinstance(rows[1][1], int)
    assert read.x == (0.5, 1.0) and math.isnan(read.y[0]) and read.y[1] == math.inf
    assert section.plots[0].marks == ((1.0, "m"),)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 1.0004e-3])
def test_missing_nan_and_too_large_values_fail(value: float | None) -> None:
    assert not Measure("m", value, "", "", Tolerance(1e-3, "")).passed
    assert Measure("m", value, "", "").passed


def test_a_verdict_survives_saving_and_loading() -> None:
    """float32 0.001 is more than 0.001: the verdict must be the same before and after saving."""
    report = only(Measure("m", np.float32(1e-3), "", "", Tolerance(1e-3, "")))
    assert report.passed is again(report).passed is False


def test_another_schema_is_refused() -> None:
    with pytest.raises(ReportError, match=f"schema 99.*reads schema {SCHEMA}. Validate again"):
        Report.from_dict({**realistic().to_dict(), "schema": 99})


@pytest.mark.parametrize(
    "change",
    [
        {"sections": 5},
        {"bundle": "int8"},
        {"machine": ["gpu"]},
        {"made_by": None},
        {"made_by": "\ud800"},
        {"settings": {"frames": {"deep": "\udfff"}}},
    ],
)
def test_parts_of_another_kind_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ReportError, match="not a validation report"):
        Report.from_dict({**realistic().to_dict(), **change})


@pytest.mark.parametrize(
    "section, problem",
    [
        ({"measures": [Measure("a", 1, "", ""), Measure("a", 2, "", "")]}, "more than one measure named"),
        ({"tables": (Table("t", ("one",), ((1, 2),)),)}, "does not have 1 cells"),
        ({"plots": (Plot("p", "pie", "", "", ()),)}, "kind 'pie'"),
        ({"plots": (Plot("p", "line", "", "", (Series("s", (1.0,), ()),)),)}, "1 x and 0 y"),
        ({"measures": (Measure("a", 10**400, "", ""),)}, "OverflowError"),
        ({"tables": (Table("t", ("one",), ((10**400,),)),)}, "OverflowError"),
    ],
)
def test_reports_that_cannot_be_rendered_are_refused(section: dict[str, Any], problem: str) -> None:
    report = replace(realistic(), sections=(replace(Section("s", "S", "?"), **section),))
    with pytest.raises(ReportError, match=problem):
        again(report)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_any_json_is_a_report_or_an_error(data: Any) -> None:
    _read_or_refuse(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_report_with_any_part_replaced_is_a_report_or_an_error(data: st.DataObject) -> None:
    """Replaces a random part of a real report with any JSON; a report that loads can be saved and loaded again."""
    report = only(
        Measure("m", 1.0, "", "", Tolerance(1.0, "")),
        tables=(Table("t", ("a",), ((1,),)),),
        plots=(Plot("p", "bar", "", "", (Series("s", (0.0,), (1.0,)),), ticks=("a",), marks=((0.0, "w"),)),),
    ).to_dict()
    place: Any = report
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 4))):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    _read_or_refuse(report)


def _read_or_refuse(data: Any) -> None:
    try:
        report = Report.from_dict(data)
    except ReportError as error:
        str(error).encode()
    else:
        assert again(report).to_dict() == report.to_dict()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'{"schema": 1}'])
def test_the_message_names_a_file_that_is_not_a_report(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(ReportError, match=r"report\.json"):
        read_report(tmp_path)


def test_the_message_for_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="pplex-export validate --report"):
        read_report(tmp_path / "nothing.json")


def test_a_report_is_read_from_its_file_or_folder(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(realistic().to_dict()))
    assert read_report(file).to_dict() == read_report(tmp_path).to_dict() == realistic().to_dict()
