"""A score as text, Markdown and a folder of files. Called by `cli.fdb`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pplex.fdb.worst import Worst, named
from pplex.measure.tables import aligned
from pplex.validate.output import SOUNDS_FOLDER, json_bytes
from pplex.validate.report import markdown, wording
from pplex.validate.report.html import render
from pplex.validate.report.schema import REPORT_FILE, Report, Section, Table

PAGES = Path(__file__).parent / "page"
RECORDINGS = ("worst-*.wav",)
SHOWN_FAULTS = 10
_SHOWN = ("results", "compared-", "faults")  # the sections whose tables are shown as text


@dataclass(frozen=True)
class ScoreReport:
    """A report, and the worst samples to listen to."""

    report: Report
    worst: tuple[Worst, ...]

    def to_dict(self) -> dict[str, Any]:
        heard = [{"sample": one.score.sample.name, "why": one.why} for one in self.worst]
        return {**self.report.to_dict(), "worst": heard}

    def to_text(self) -> str:
        blocks = (
            [f"{wording.report_verdict(self.report).word}: {wording.headline(self.report)}"] if self._is_held() else []
        )
        for section in self._tables():
            blocks += [_text_of(_cut(table)) for table in section.tables]
            blocks += ["\n".join(map(wording.plain_line, section.notes))] if section.notes else []
        blocks += ["\n".join(f"FAILED {one.name}: {wording.failure(one)}" for one in self.report.failures)]
        return "\n\n".join(block for block in blocks if block)

    def to_markdown(self) -> str:
        """For a pull request: the verdict, the table of all tasks, and comparisons."""
        verdict, blocks = wording.report_verdict(self.report), list[str]()
        if self._is_held():
            blocks += [f"**{verdict.symbol} {verdict.word}**: {markdown.prose(wording.headline(self.report))}"]
        blocks += [
            f"- {markdown.code(one.name)}: {markdown.prose(wording.failure(one))}" for one in self.report.failures
        ]
        for section in self._tables():
            for table in section.tables:
                columns = [markdown.prose(column) for column in table.columns]
                rows = [[markdown.prose(wording.cell(value)) for value in row] for row in _cut(table).rows]
                blocks.append(f"{markdown.prose(table.title)}:\n\n{markdown.table(columns, rows)}")
            notes = "\n".join(f"- {markdown.prose(note)}" for note in section.notes)
            blocks += [markdown.folded("Notes", notes)] if notes else []
        return "\n\n".join(blocks) + "\n"

    def files(self) -> dict[str, bytes]:
        """Files by name."""
        results, *others = self.report.sections
        shown = replace(self.report, sections=tuple(others))
        page = render("score.html", PAGES, report=shown, results=results, worst=self.worst, examined="Answers")
        return {
            REPORT_FILE: json_bytes(self.to_dict()),
            "report.html": page.encode(),
            "report.md": self.to_markdown().encode(),
            **{f"{SOUNDS_FOLDER}/{name}": data for name, data in named(self.worst).items()},
        }

    def _is_held(self) -> bool:
        """Whether there is anything to fail."""
        return wording.held(self.report) > 0

    def _tables(self) -> Iterator[Section]:
        return (section for section in self.report.sections if section.key.startswith(_SHOWN))


def _cut(table: Table) -> Table:
    """A long table of faults with its first rows; the page has all."""
    more = len(table.rows) - SHOWN_FAULTS
    if table.columns != ("sample", "why") or more <= 0:
        return table
    return Table(table.title, table.columns, (*table.rows[:SHOWN_FAULTS], ("...", f"and {more} more")))


def _text_of(table: Table) -> str:
    rows = [[wording.cell(value) for value in row] for row in table.rows]
    return f"{wording.plain_line(table.title)}\n{aligned([table.columns, *rows], indent='  ')}"
