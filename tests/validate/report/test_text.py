"""The report for the terminal, and the wording that all forms share."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import clean, graded, hostile, realistic

from pplex.validate.report import wording
from pplex.validate.report.schema import Measure, Tolerance
from pplex.validate.report.text import to_text


def test_failures_are_named_at_the_end_in_one_line_each() -> None:
    assert to_text(realistic()).splitlines()[-4:] == [
        "FAILED graphs.temporal.layer_error: 0.95 > 0.001 at layers.1.gating",
        "FAILED graphs.depth.layer_error: 0.0010004 > 0.001 at layers.5.in_proj",
        "FAILED graphs.temporal.ring_error: not measured, must be ≤ 0.001",
        "FAILED drift.same_audio: 0.9412 < 0.95 at codebook 7",
    ]
    assert to_text(realistic()).startswith("FAILED: outside 4 of 9 tolerances\n")
    assert to_text(clean()).startswith("PASSED: within all 9 tolerances\n") and "FAILED" not in to_text(clean())


def test_the_grade_is_the_last_word_with_the_figures_that_decide_it() -> None:
    assert to_text(graded()).splitlines()[-2:] == [
        "Grade: audible: expect other words",
        "  divergence of audio 0.09 nats; health.looped_text 0.4 share",
    ]


def test_a_grade_without_conversations_says_so() -> None:
    report = graded()
    assert report.grade is not None
    unheard = replace(report, grade=replace(report.grade, heard=False))
    assert to_text(unheard).endswith("; by steps with given tokens only, without free conversations")


def test_columns_are_aligned() -> None:
    rows = [line for line in to_text(realistic()).splitlines() if line.startswith("  ") and " graphs." in line]
    assert len({line.index("graphs.") for line in rows}) == 1
    assert len({line.index("≤") for line in rows if "≤" in line}) == 1
    assert all(line == line.rstrip() for line in to_text(realistic()).splitlines())


def test_control_characters_are_removed_for_terminals() -> None:
    text = to_text(hostile("\x1b]0;owned\x07\r\n\x9b2J\u202ename\u200b"))
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\N{REPLACEMENT CHARACTER}]0;owned" in text


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
def test_shown_values_have_the_verdict_of_measured_ones(value: float, limit: float, least: bool) -> None:
    measure = Measure("m", value, "", "", Tolerance(limit, "", least))
    shown, allowed = wording.measured(measure), wording.allowed(measure.tolerance)
    read_value, read_limit = float(shown.replace(",", "")), float(allowed[2:].replace(",", ""))
    assert read_limit == limit
    assert Tolerance(read_limit, "", least).allows(read_value) is measure.passed


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 12))
def test_values_near_a_limit_are_not_rounded_to_it(limit: float, digits: int) -> None:
    test_shown_values_have_the_verdict_of_measured_ones.hypothesis.inner_test(limit * (1 + 10.0**-digits), limit, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value, shown",
    [
        (None, "-"),
        (0.0, "0"),
        (1234.0, "1,234"),
        (1234.5678, "1,234.6"),
        (0.123456, "0.1235"),
        (4.1e-7, "4.1e-7"),
        (1e300, "1e300"),
        (0.99999999, "0.99999999"),
        (-0.9999999, "-0.9999999"),
        (80.0, "80"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_figures_have_significant_digits_only(value: float | None, shown: str) -> None:
    assert wording.figure(value) == shown


def test_a_setting_keeps_all_its_digits() -> None:
    assert wording.fact({"temperature": 0.712345678, "seed": 1234567, "cache": None, "greedy": True}) == (
        "temperature 0.712345678, seed 1234567, cache -, greedy yes"
    )
