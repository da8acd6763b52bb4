"""The report for a pull request: short, failures first, and no value becomes markup."""

import re

import pytest
from reports import HOSTILE, clean, graded, hostile, realistic

from pplex.validate.report.markdown import code, prose, to_markdown


def rows(markdown: str) -> list[list[str]]:
    """The cells of every table row, split at pipes as GitHub does: a backslash takes the next character with it."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.findall(r"((?:\\.|[^|\\])*)\|", line[1:])] for line in lines]


def test_the_verdict_comes_first_then_failures_then_the_rest() -> None:
    markdown = to_markdown(realistic())
    assert markdown.startswith("**✗ FAILED**: outside 4 of 9 tolerances\n")
    verdicts = [row[0] for row in rows(markdown) if row[0].startswith(("✗", "✓"))]
    assert verdicts == ["✗ FAILED"] * 4 + ["✓ passed"] * 5
    assert "| ✗ FAILED | `graphs.temporal.layer_error` | **0.95** | ≤ 0.001 | `layers.1.gating` |" in markdown
    assert to_markdown(clean()).startswith("**✓ PASSED**: within all 9 tolerances\n")


def test_the_grade_follows_the_verdict() -> None:
    second = to_markdown(graded()).split("\n\n")[1]
    assert second == (
        "Grade **audible**: expect other words (divergence of audio 0.09 nats; health.looped\\_text 0.4 share)"
    )
    assert "Grade" not in to_markdown(realistic())


def test_measures_for_information_are_folded() -> None:
    before, _, folded = to_markdown(realistic()).partition("<details>")
    assert "speed.frame_ms" in folded and "speed.frame_ms" not in before
    assert (
        folded.rstrip().endswith("</details>") and "<details>" not in to_markdown(hostile()).partition("<details>")[2]
    )


@pytest.mark.parametrize("text", [HOSTILE, "a|b", "a\\|b", "a`b``c|d", "x\\", "`", "line\nbreak | row", "</details>"])
def test_no_text_breaks_a_table_or_becomes_html(text: str) -> None:
    markdown = to_markdown(hostile(text))
    assert [len(row) for row in rows(markdown)] == [6, 6, 6, 2, 2, 2]
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown)
    assert set(re.findall(r"</?[a-z]+", outside)) == {"<details", "</details", "<summary", "</summary"}


def test_a_code_span_holds_its_backticks() -> None:
    assert code("a.b") == "`a.b`"
    assert code("a`b") == "``a`b``"
    assert code("``") == "``` `` ```"
    assert code("") == ""
    assert code("a|b") == "a\\|b"


def test_mentions_and_links_are_escaped() -> None:
    assert "@octocat" not in prose("thanks @octocat") and "#12" not in prose("fixes #12")
    assert "://" not in prose("http://x.test") and prose("[a](b) *c* _d_") == r"\[a\]\(b\) \*c\* \_d\_"
