"""The text of a report's names, figures and verdicts, shared by HTML, Markdown and text. Called by `validate`."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pplex.validate.report.schema import Measure, Report, Section, Tolerance

DIGITS = 4  # significant digits, or more if a value would look like its limit
EXACT_DIGITS = 17  # distinguish any two float64


class Verdict(NamedTuple):
    """A verdict by key (for colours), symbol and word."""

    key: str
    symbol: str
    word: str


PASSED = Verdict("passed", "✓", "passed")
FAILED = Verdict("failed", "✗", "FAILED")
INFO = Verdict("info", "•", "for information")
MISSING = Verdict("info", "•", "not measured")
NONE = Verdict("info", "•", "NO VERDICT")


def plain_line(value: Any) -> str:
    """The text on one line, without control and invisible characters."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(str(value).split()))


def figure(value: float | None, digits: int = DIGITS) -> str:
    """A number with `digits` significant digits. Integers stay whole; a share just below 1 does not become 1."""
    if value is None:
        return "-"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    while abs(value) < 1 and digits < 12 and abs(float(f"{value:.{digits}g}")) == 1:
        digits += 1
    if 1 <= abs(value) < 1e7:
        digits = max(digits, len(str(int(abs(value)))) + 1)
    mantissa, e, exponent = f"{value:,.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def figure_against(value: float | None, limit: float) -> str:
    """The value with enough digits to distinguish it from the limit."""
    if value is None or not math.isfinite(value):
        return figure(value)
    value, limit = float(value), float(limit)
    for digits in range(DIGITS, EXACT_DIGITS):
        if _order(_read(figure(value, digits)), limit) == _order(value, limit):
            return figure(value, digits)
    return figure(value, EXACT_DIGITS)


def exact(value: float) -> str:
    """The number with all its digits, for tolerances and settings."""
    return text if _read(text := figure(value)) == value else repr(float(value)).replace("e-0", "e-")


def measured(measure: Measure) -> str:
    """The value without its unit."""
    given = measure.tolerance
    if measure.value is None:
        return "none"
    return figure_against(measure.value, given.limit) if given else figure(measure.value)


def unit(measure: Measure) -> str:
    return "" if measure.value is None else plain_line(measure.unit)


def allowed(tolerance: Tolerance | None) -> str:
    return f"{'≥' if tolerance.least else '≤'} {exact(tolerance.limit)}" if tolerance else ""


def verdict(measure: Measure) -> Verdict:
    if measure.tolerance is None:
        return MISSING if measure.value is None else INFO
    return PASSED if measure.passed else FAILED


def section_verdict(section: Section) -> Verdict:
    if section.failures:
        return FAILED
    return PASSED if any(measure.tolerance for measure in section.measures) else INFO


def report_verdict(report: Report) -> Verdict:
    """NO VERDICT if no measure has a tolerance."""
    if report.failures:
        return FAILED
    return PASSED._replace(word="PASSED") if held(report) else NONE


def held(report: Report) -> int:
    """The number of measures with a tolerance."""
    return sum(measure.tolerance is not None for measure in report.measures)


def headline(report: Report) -> str:
    """The reason for the verdict in a few words."""
    count, failed = held(report), len(report.failures)
    if failed:
        return f"outside {failed} of {count} tolerances"
    return f"within all {count} tolerances" if count else "no measure has a tolerance"


def grade(report: Report) -> str:
    """The grade with its meaning, empty without one."""
    return f"{plain_line(report.grade.word)}: {plain_line(report.grade.meaning)}" if report.grade else ""


def grade_reasons(report: Report) -> str:
    """The figures that decide the grade, and whether conversations were part of it."""
    if report.grade is None:
        return ""
    heard = "" if report.grade.heard else "by steps with given tokens only, without free conversations"
    return "; ".join(filter(None, (*map(plain_line, report.grade.reasons), heard)))


def failure(measure: Measure) -> str:
    """The reason why a measure failed, such as: 0.95 > 0.001 at layers.1.gating."""
    assert measure.tolerance is not None
    where = f" at {plain_line(measure.where)}" if measure.where else ""
    limit = exact(measure.tolerance.limit)
    if measure.value is None or math.isnan(measure.value):
        what = "not measured" if measure.value is None else "not a number"
        return f"{what}, must be {allowed(measure.tolerance)}{where}"
    return f"{measured(measure)} {'<' if measure.tolerance.least else '>'} {limit}{where}"


def excess(measure: Measure) -> str:
    """The distance of a failed measure from its limit in words; empty if it is not a number."""
    value, tolerance = measure.value, measure.tolerance
    if tolerance is None or value is None or not (math.isfinite(value) and math.isfinite(tolerance.limit)):
        return ""
    if tolerance.limit > 0 and value >= 2 * tolerance.limit:
        return f"{figure(value / tolerance.limit, 3)} times the limit"
    return f"{figure(abs(value - tolerance.limit), 3)} {'too low' if tolerance.least else 'too high'}"


def cell(value: str | float | int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return figure(value) if value is None or isinstance(value, int | float) else plain_line(value)


def fact(value: Any) -> str:
    """A value of the report's head on one line: key value, key value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{plain_line(key)} {_inner(item)}" for key, item in value.items())
    return ", ".join(map(_inner, value)) if isinstance(value, list | tuple) else _inner(value)


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(plain_line(key).replace("_", " "), fact(value)) for key, value in mapping.items()]


def graph_rows(bundle: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Graph, precision and engine, in the bundle's order."""
    precision, engines = (_mapping(bundle.get(key)) for key in ("precision", "engines"))
    graphs = dict.fromkeys((*precision, *engines))
    return [(plain_line(name), fact(precision.get(name, "-")), fact(engines.get(name, "-"))) for name in graphs]


def other_facts(bundle: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a bundle apart from its graphs."""
    shown = [key for key in ("precision", "engines") if isinstance(bundle.get(key), Mapping)]
    return facts({key: value for key, value in bundle.items() if key not in shown})


def name_of(mapping: Mapping[str, Any]) -> str:
    return fact(mapping.get("name", "unnamed"))


def failures_first(measures: Iterable[Measure]) -> list[Measure]:
    return sorted(measures, key=lambda measure: measure.passed)


def _inner(value: Any) -> str:
    if isinstance(value, float):
        return exact(value)
    if value is None or isinstance(value, bool):
        return cell(value)
    return plain_line(json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list | tuple) else value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _order(a: float, b: float) -> int:
    return (a > b) - (a < b)


def _read(text: str) -> float:
    return float(text.replace(",", ""))
