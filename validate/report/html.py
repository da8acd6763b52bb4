"""A report as one HTML file for light and dark screens, phones and paper. It needs no network and no scripts.

Called by `validate.output`, `validate.report.compare` and `fdb.output`.
"""

import re
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pplex.validate.report import wording
from pplex.validate.report.plots import to_svg
from pplex.validate.report.schema import Plot, Report, Table

PAGES = Path(__file__).parent / "page"


def to_html(report: Report) -> str:
    """The report as HTML; equal reports give equal text."""
    return render("report.html", report=report)


def render(template: str, pages: Path = PAGES, **values: Any) -> str:
    """Render a template in `pages`, which may extend those of this package. Plots are numbered, so their ids differ."""
    numbers = count(1)

    def svg(plot: Plot) -> Markup:
        return Markup(to_svg(plot, f"plot{next(numbers)}"))  # to_svg escapes its text

    return _environment(pages).get_template(template).render(values, svg=svg)


@cache
def _environment(pages: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([pages, PAGES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"w": wording, "anchor": anchor, "numeric": _numeric}
    return environment


def anchor(kind: str, name: str) -> str:
    """The id of a section or measure for links: the same in every report."""
    return f"{kind}-{re.sub(r'[^a-zA-Z0-9_.-]+', '-', name)}"


def _finalize(value: Any) -> Any:
    """Remove invisible characters from text; our own markup stays."""
    return wording.plain_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _numeric(table: Table) -> list[bool]:
    """Whether a column holds numbers only."""
    return [all(not isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
