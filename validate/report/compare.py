"""Compares two reports measure by measure, for pplex-export validate --compare.

Called by `cli.validation` and `validate.output`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pplex.measure.tables import aligned
from pplex.validate.report import wording
from pplex.validate.report.markdown import code, folded, prose, table
from pplex.validate.report.schema import Measure, Plot, Report, Section

HEADERS = ("measure", "A", "B", "change", "A", "B")
ABSENT = wording.Verdict("info", "-", "absent")


@dataclass(frozen=True)
class Pair:
    """One measure in both reports; None if a report does not have it."""

    name: str
    a: Measure | None
    b: Measure | None

    @property
    def measure(self) -> Measure:
        """The measure of A, or of B if A does not have it: it gives name and unit."""
        measure = self.a or self.b
        assert measure is not None
        return measure

    @property
    def difference(self) -> float | None:
        """B - A; None if a value is missing or not finite."""
        a, b = _finite(self.a), _finite(self.b)
        return None if a is None or b is None else _finite_or_none(b - a)

    @property
    def ratio(self) -> float | None:
        """B / A; None if a value is missing, zero or not finite, or if the signs differ."""
        a, b = _finite(self.a), _finite(self.b)
        return None if a is None or b is None or not a * b > 0 else _finite_or_none(b / a)

    @property
    def verdicts(self) -> tuple[wording.Verdict, wording.Verdict]:
        a, b = (wording.verdict(measure) if measure else ABSENT for measure in (self.a, self.b))
        return a, b

    @property
    def values(self) -> tuple[str, str]:
        a, b = (f"{wording.measured(m)} {wording.unit(m)}".rstrip() if m else ABSENT.symbol for m in (self.a, self.b))
        return a, b

    @property
    def change(self) -> str:
        """A ratio, or a difference if a ratio has no meaning, as for shares near 1."""
        least = any(m and m.tolerance and m.tolerance.least for m in (self.a, self.b))
        if self.difference is None:
            return "only A" if self.b is None else "only B" if self.a is None else ""
        if self.difference == 0:
            return "same"
        if self.ratio is None or least:
            return f"{'+' if self.difference > 0 else ''}{wording.figure(self.difference, 3)}"
        return f"{wording.figure(self.ratio, 3)} times"


@dataclass(frozen=True)
class ComparedSection:
    """One section of both reports."""

    key: str
    title: str
    question: str
    pairs: tuple[Pair, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Comparison:
    """Report `a` against report `b`; `notes` say why figures may not be comparable."""

    a: Report
    b: Report
    groups: tuple[ComparedSection, ...]
    notes: tuple[str, ...]

    @property
    def pairs(self) -> Iterator[Pair]:
        return (pair for group in self.groups for pair in group.pairs)

    @property
    def changed(self) -> dict[str, list[str]]:
        """Measures whose verdict changed from A to B, by kind of change."""
        became = {
            "Passed in A, failed in B": (wording.PASSED, wording.FAILED),
            "Passed in A, no tolerance in B": (wording.PASSED, None),
            "Failed in A, no tolerance in B": (wording.FAILED, None),
            "Failed in A, passed in B": (wording.FAILED, wording.PASSED),
        }
        held = (wording.PASSED, wording.FAILED)
        verdicts = {
            pair.name: (pair.verdicts[0], v if (v := pair.verdicts[1]) in held else None) for pair in self.pairs
        }
        named = {what: [name for name, change in verdicts.items() if change == given] for what, given in became.items()}
        return {what: names for what, names in named.items() if names}

    @property
    def summary(self) -> list[str]:
        """Each report's verdict, and the measures whose verdict changed."""
        lines = [
            f"{letter}: {wording.name_of(report.bundle)}, {wording.report_verdict(report).word}, {wording.headline(report)}"
            + (f", grade {wording.plain_line(report.grade.word)}" if report.grade else "")
            for letter, report in self.sides
        ]
        return [
            *lines,
            *(f"{what}: {', '.join(map(wording.plain_line, names))}" for what, names in self.changed.items()),
        ]

    @property
    def sides(self) -> tuple[tuple[str, Report], tuple[str, Report]]:
        return ("A", self.a), ("B", self.b)

    @property
    def graphs(self) -> list[tuple[str, str, str]]:
        """Graph, and its precision and engine in A and in B."""
        a, b = ({g: f"{p}, {engine}" for g, p, engine in wording.graph_rows(report.bundle)} for _, report in self.sides)
        return [(graph, a.get(graph, ABSENT.symbol), b.get(graph, ABSENT.symbol)) for graph in dict.fromkeys((*a, *b))]

    def to_dict(self) -> dict[str, Any]:
        """JSON data; infinity and NaN, which JSON lacks, are strings."""
        a, b = self.a.to_dict(), self.b.to_dict()
        head = {
            letter: {
                key: side[key] for key in ("passed", "failures", "grade", "bundle", "reference", "settings", "machine")
            }
            for letter, side in (("a", a), ("b", b))
        }
        values = [{m["name"]: m["value"] for s in side["sections"] for m in s["measures"]} for side in (a, b)]
        return {**head, "notes": list(self.notes), "measures": [_pair_dict(pair, *values) for pair in self.pairs]}

    def to_text(self) -> str:
        blocks = ["\n".join(self.summary), "\n".join(f"note: {note}" for note in self.notes)]
        blocks += [aligned([("graph", "A", "B"), *self.graphs])] if self.graphs else []
        for group in (group for group in self.groups if group.pairs):
            title = wording.plain_line(group.title)
            rows = [
                (wording.plain_line(p.name), *p.values, p.change, *(v.word for v in p.verdicts)) for p in group.pairs
            ]
            blocks.append(f"{title}\n{aligned([HEADERS, *rows], right=(1, 2, 3), indent='  ')}")
        return "\n\n".join(block for block in blocks if block)

    def to_markdown(self) -> str:
        """For a pull request: measures with a tolerance first, the rest folded."""
        held = [pair for pair in self.pairs if {wording.PASSED, wording.FAILED} & set(pair.verdicts)]
        others = [pair for pair in self.pairs if pair not in held]
        blocks = [
            "\n".join(f"- {prose(line)}" for line in self.summary),
            "\n".join(f"> {prose(note)}" for note in self.notes),
            table(("graph", "A", "B"), [(code(g), prose(a), prose(b)) for g, a, b in self.graphs])
            if self.graphs
            else "",
            table(HEADERS, map(_markdown_row, held)) if held else "",
            folded(f"{len(others)} for information", table(HEADERS, map(_markdown_row, others))) if others else "",
        ]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def to_html(self) -> str:
        """One file, like a report's."""
        from pplex.validate.report.html import render

        return render("comparison.html", comparison=self)


def compare(a: Report, b: Report) -> Comparison:
    """Pair measures by name, and plots by section and title, in A's order. Those that only B has come last."""
    of_b = {measure.name: measure for measure in b.measures}
    names_of_a = {measure.name for measure in a.measures}
    sections = {section.key: section for report in (b, a) for section in report.sections}
    order = dict.fromkeys(section.key for report in (a, b) for section in report.sections)
    groups = []
    for key in order:
        mine, theirs = (next((s for s in report.sections if s.key == key), None) for report in (a, b))
        pairs = [Pair(m.name, m, of_b.get(m.name)) for m in (mine.measures if mine else ())]
        pairs += [Pair(m.name, None, m) for m in (theirs.measures if theirs else ()) if m.name not in names_of_a]
        plots = tuple(_overlays(mine, theirs)) if mine and theirs else ()
        groups.append(ComparedSection(key, sections[key].title, sections[key].question, tuple(pairs), plots))
    return Comparison(a, b, tuple(groups), tuple(_notes(a, b)))


def _overlays(a: Section, b: Section) -> Iterator[Plot]:
    """Overlay lines and bars of the same kind and ticks. Timelines stay apart: an overlay would be unreadable."""
    for plot in a.plots:
        other = next((p for p in b.plots if p.title == plot.title), None)
        if other and plot.kind in ("line", "bar") and (plot.kind, plot.ticks) == (other.kind, other.ticks):
            yield from _overlaid(plot, other)


def _overlaid(a: Plot, b: Plot) -> Iterator[Plot]:
    """One plot for each series, with A and B: more lines in a plot would be unreadable."""
    names = list(dict.fromkeys(series.name for plot in (a, b) for series in plot.series))
    marks = tuple(dict.fromkeys((*a.marks, *b.marks)))
    for name in names:
        pair = tuple(replace(s, name=x) for x, plot in (("A", a), ("B", b)) for s in plot.series if s.name == name)
        title = f"{a.title}: {name}" if name and len(names) > 1 else a.title
        yield replace(a, title=title, series=pair, marks=marks, log_y=a.log_y and b.log_y)


def _notes(a: Report, b: Report) -> Iterator[str]:
    """Reasons why figures may differ, other than the bundles."""
    one, two = a.to_dict(), b.to_dict()
    warnings = {
        "settings": "Different settings",
        "reference": "Different reference",
        "machine": "Different machine",
    }
    for key, what in warnings.items():
        if changed := _changed(one[key], two[key]):
            yield f"{what} ({'; '.join(changed)}): figures that depend on it cannot be compared."
    checkpoints = [report["bundle"].get("checkpoint") for report in (one, two)]
    if checkpoints[0] != checkpoints[1]:
        yield f"The bundles come from different checkpoints: {' and '.join(map(wording.fact, checkpoints))}."
    limits = [{m.name: wording.allowed(m.tolerance) for m in report.measures if m.tolerance} for report in (a, b)]
    if moved := [name for name, limit in limits[0].items() if limits[1].get(name, limit) != limit]:
        yield f"Different tolerances in A and B: {', '.join(map(wording.plain_line, moved))}."


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, with both values."""
    keys = (key for key in dict.fromkeys((*a, *b)) if key not in a or key not in b or _json(a[key]) != _json(b[key]))
    values = ((wording.plain_line(key), *(wording.fact(side.get(key, "none")) for side in (a, b))) for key in keys)
    return [f"{key}: {one} and {two}" for key, one, two in values]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _pair_dict(pair: Pair, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    words = dict(zip(("verdict_a", "verdict_b"), (verdict.word.lower() for verdict in pair.verdicts), strict=True))
    values = {"a": a.get(pair.name), "b": b.get(pair.name), "difference": pair.difference, "ratio": pair.ratio}
    return {"name": pair.name, "unit": pair.measure.unit, **values, **words}


def _markdown_row(pair: Pair) -> tuple[str, ...]:
    verdicts = (f"{verdict.symbol} {verdict.word}" for verdict in pair.verdicts)
    return code(pair.name), *map(prose, (*pair.values, pair.change)), *verdicts


def _finite(measure: Measure | None) -> float | None:
    return None if measure is None or measure.value is None else _finite_or_none(float(measure.value))


def _finite_or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
