"""Tables for terminals and for Markdown, and sizes in them; called by every command that prints one.

A GPU machine for benchmarks may have few packages, so this module needs none.
"""

from collections.abc import Collection, Iterable, Sequence


def aligned(rows: Iterable[Sequence[str]], right: Collection[int] = (), indent: str = "") -> str:
    """Columns two spaces apart, right-aligned if in `right`; lines have no trailing spaces."""
    return "\n".join(f"{indent}{'  '.join(row)}".rstrip() for row in _padded([*rows], right))


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; cells must be escaped already."""
    head, *lines = _padded([headers, *rows])
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["-" * len(cell) for cell in head], *lines))


def readable(nbytes: int) -> str:
    """Bytes in kB, MB or GB (10^3, 10^6, 10^9): 98 kB, 8.3 MB, 15.7 GB."""
    if nbytes < 10**6:
        return f"{nbytes / 10**3:.0f} kB"
    return f"{nbytes / 10**6:.1f} MB" if nbytes < 10**9 else f"{nbytes / 10**9:.1f} GB"


def _padded(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.rjust if column in right else str.ljust for column in range(len(widths))]
    return [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows]
