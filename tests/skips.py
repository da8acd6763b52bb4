"""The reasons for skipped tests, and the number of each: `make test` ends with it.

    python tests/skips.py REPORT.xml...

The reports are what pytest writes with --junitxml, one of each run.
"""

import ast
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def reasons(reports: Iterable[Path]) -> Counter[str]:
    """The number of skipped tests for each reason. A skipped file counts as one."""
    found = (skip for report in reports for skip in ElementTree.parse(report).iter("skipped"))
    return Counter(_reason(skip) for skip in found)


def _reason(skip: ElementTree.Element) -> str:
    reason = skip.get("message", "")
    if reason == "collection skipped":  # then the text is (path, line, reason)
        reason = str(ast.literal_eval(skip.text or "")[2])
    return reason.removeprefix("Skipped: ")


def summary(counts: Counter[str]) -> str:
    """One line for each reason, the most frequent first."""
    if not counts:
        return "No test was skipped."
    lines = [f"{count:6}  {reason}" for reason, count in counts.most_common()]
    return "\n".join([f"Why {counts.total()} of the tests were skipped:", *lines])


if __name__ == "__main__":
    print(summary(reasons(map(Path, sys.argv[1:]))))
