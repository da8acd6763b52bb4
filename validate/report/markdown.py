"""A report as Markdown, for a pull request. Called by `validate.output` and `validate.report.compare`."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pplex.validate.report import wording
from pplex.validate.report.schema import Measure, Report

HEADERS = ("", "measure", "value", "tolerance", "where", "reason")


def to_markdown(report: Report) -> str:
    """The verdict, the measures with a tolerance (failures first), and the others folded."""
    verdict = wording.report_verdict(report)
    held = wording.failures_first(measure for measure in report.measures if measure.tolerance)
    others = [measure for measure in report.measures if not measure.tolerance]
    blocks = [
        f"**{verdict.symbol} {verdict.word}**: {prose(wording.headline(report))}",
        _grade(report),
        _head(report),
        table(HEADERS, map(_row, held)) if held else "",
        folded(f"{len(others)} for information", table(HEADERS[1:3], map(_short_row, others))) if others else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def prose(text: Any) -> str:
    """Text escaped for Markdown, without @mentions, #issues and links."""
    escaped = re.sub(r"([\\`*_{}\[\]()|~$])", r"\\\1", wording.plain_line(text))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([@#]|:(?=//)|www\.)", r"\1" "\N{ZERO WIDTH SPACE}", escaped)


def code(text: Any) -> str:
    """A code span for a table cell, with a longer fence than its backticks; prose for text with a pipe."""
    line = wording.plain_line(text)
    if "|" in line:
        return prose(line)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}" if line else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without padding, because comments are limited in size; cells must be escaped already."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(summary: str, block: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{block}\n\n</details>"


def _grade(report: Report) -> str:
    if report.grade is None:
        return ""
    reasons = wording.grade_reasons(report)
    more = f" ({prose(reasons)})" if reasons else ""
    return f"Grade **{prose(report.grade.word)}**: {prose(report.grade.meaning)}{more}"


def _head(report: Report) -> str:
    graphs = [f"{graph} {precision}" for graph, precision, _ in wording.graph_rows(report.bundle)]
    bundle = ", ".join([wording.name_of(report.bundle), *graphs])
    reference, machine = wording.name_of(report.reference), wording.fact(report.machine)
    return f"Bundle {prose(bundle)} · compared with {prose(reference)} · {prose(machine)}"


def _row(measure: Measure) -> tuple[str, ...]:
    verdict, tolerance = wording.verdict(measure), measure.tolerance
    value = prose(f"{wording.measured(measure)} {wording.unit(measure)}")
    return (
        f"{verdict.symbol} {verdict.word}",
        code(measure.name),
        f"**{value}**" if verdict is wording.FAILED else value,
        prose(wording.allowed(tolerance)),
        code(measure.where),
        prose(tolerance.reason if tolerance else ""),
    )


def _short_row(measure: Measure) -> tuple[str, ...]:
    return code(measure.name), prose(f"{wording.measured(measure)} {wording.unit(measure)}")
