"""A report for the terminal; printed by pplex-export validate.

Called by `cli.validation` and `validate.report.compare`.
"""

from pplex.measure.tables import aligned
from pplex.validate.report import wording
from pplex.validate.report.schema import Measure, Report, Section

NUMBERS = (2,)  # the column of a section's table that is aligned on the right


def to_text(report: Report) -> str:
    """The verdict, bundle and reference, all measures by section, and at the end a line for each failure and the grade."""
    verdict = wording.report_verdict(report).word
    failures = "\n".join(f"FAILED {wording.plain_line(m.name)}: {wording.failure(m)}" for m in report.failures)
    blocks = [
        f"{verdict}: {wording.headline(report)}",
        _head(report),
        *map(_section, report.sections),
        failures,
        _grade(report),
    ]
    return "\n\n".join(block for block in blocks if block)


def _grade(report: Report) -> str:
    reasons = wording.grade_reasons(report)
    return (
        "\n".join(filter(None, (f"Grade: {wording.grade(report)}", f"  {reasons}" if reasons else "")))
        if report.grade
        else ""
    )


def _head(report: Report) -> str:
    graphs = [(graph, f"{precision}, {engine}") for graph, precision, engine in wording.graph_rows(report.bundle)]
    lists = {
        "bundle": wording.other_facts(report.bundle) + graphs,
        "reference": wording.facts(report.reference),
        "settings": wording.facts(report.settings),
        "machine": wording.facts(report.machine),
        "made by": [(wording.plain_line(report.made_by), "")],
    }
    return aligned((what if i == 0 else "", *fact) for what, facts in lists.items() for i, fact in enumerate(facts))


def _section(section: Section) -> str:
    lines = [f"{wording.plain_line(section.title)}: {wording.plain_line(section.question)}"]
    lines += [aligned(map(_row, section.measures), NUMBERS, indent="  ")] if section.measures else []
    return "\n".join([*lines, *(f"  {wording.plain_line(note)}" for note in section.notes)])


def _row(measure: Measure) -> tuple[str, ...]:
    where = f"at {wording.plain_line(measure.where)}" if measure.where else ""
    name, word = wording.plain_line(measure.name), _WORDS[wording.verdict(measure)]
    return word, name, wording.measured(measure), wording.unit(measure), wording.allowed(measure.tolerance), where


_WORDS = {wording.PASSED: "ok", wording.FAILED: "FAILED", wording.INFO: "info", wording.MISSING: "missing"}
