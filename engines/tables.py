"""Markdown tables for printed reports, which the documentation can show unchanged. Called by `engines`."""

from collections.abc import Sequence


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (headers, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def readable(nbytes: int) -> str:
    """Bytes in kB, MB or GB (10^3, 10^6, 10^9): 98 kB, 8.3 MB, 15.7 GB."""
    if nbytes < 10**6:
        return f"{nbytes / 10**3:.0f} kB"
    return f"{nbytes / 10**6:.1f} MB" if nbytes < 10**9 else f"{nbytes / 10**9:.1f} GB"
