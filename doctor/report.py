"""A diagnosis as text for people, and as JSON for scripts and bug reports."""

import platform
import textwrap
from collections.abc import Iterator
from typing import Any

from pplex.doctor.examination import Diagnosis
from pplex.doctor.findings import Finding
from pplex.doctor.requirements import PACKAGE, installed

WIDTH, INDENT = 118, 24


def to_text(diagnosis: Diagnosis) -> str:
    """A paragraph for each finding, then which commands can work, and the next command."""
    title = f"{PACKAGE} {installed(PACKAGE) or '(not installed)'}"
    lines = [line for finding in diagnosis.findings for line in _paragraph(finding)]
    return "\n".join([title, "", *lines, "", *_verdicts(diagnosis), f"Next: {diagnosis.next}"])


def to_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """All findings with their figures. Contains no user names, tokens or addresses, except in paths that the user gave."""
    return {
        "version": installed(PACKAGE),
        "platform": platform.platform(),
        "aim": diagnosis.question.aim,
        "findings": [
            {
                "check": finding.check,
                "level": finding.level,
                "fact": finding.fact,
                "advice": finding.advice,
                "stops": list(finding.stops),
                "details": dict(finding.details),
            }
            for finding in diagnosis.findings
        ],
        "stopped": diagnosis.stopped,
        "passed": diagnosis.passed,
        "next": diagnosis.next,
    }


def _paragraph(finding: Finding) -> Iterator[str]:
    head = f"{finding.level:<8} {finding.check:<14} "
    for part, first in ((finding.fact, head), (finding.advice, " " * (INDENT - 3) + "-> ")):
        for number, line in enumerate((part or "").splitlines()):
            start = first if number == 0 else " " * INDENT
            yield from textwrap.wrap(
                line.strip(), WIDTH, initial_indent=start.ljust(INDENT), subsequent_indent=" " * INDENT,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip


def _verdicts(diagnosis: Diagnosis) -> Iterator[str]:
    for aim, checks in diagnosis.stopped.items():
        verdict = f"cannot work yet: {', '.join(checks)}" if checks else "can work"
        yield f"{aim:<6} {verdict}"
