"""The list of skipped tests that `make test` ends with."""

import subprocess
import sys
from pathlib import Path

from skips import reasons, summary

SKIPPED = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_marked(number):
    pytest.skip("no GPU")

def test_other():
    pytest.skip("no browser")
"""


def test_reasons_are_counted_over_all_reports(tmp_path: Path) -> None:
    (tmp_path / "test_tests.py").write_text(SKIPPED)
    (tmp_path / "test_file.py").write_text('import pytest\npytest.importorskip("no_such_module", reason="no GPU")\n')
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-n", "2", "--junitxml", str(report), str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    counts = reasons([report, report])
    assert counts == {"no GPU": 8, "no browser": 2}
    assert summary(counts).splitlines() == ["Why 10 of the tests were skipped:", "     8  no GPU", "     2  no browser"]


def test_summary_without_skips_says_so() -> None:
    assert summary(reasons([])) == "No test was skipped."
