"""Warnings about the user's audio, as lines on standard error."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from pplex.runtime.errors import AudioWarning


@contextmanager
def notices() -> Iterator[list[str]]:
    """Print each AudioWarning once, as one line. Yields the list of printed warnings, which grows."""
    printed: list[str] = []

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, AudioWarning):
            show_others(message, category, filename, lineno, file, line)
        elif str(message) not in printed:
            printed.append(str(message))
            click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", AudioWarning)
        show_others, warnings.showwarning = warnings.showwarning, show
        yield printed
