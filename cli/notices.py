"""What a user should know of audio that was used, as lines on standard error."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from pplex.runtime.errors import AudioWarning


@contextmanager
def notices() -> Iterator[list[str]]:
    """Within it, each AudioWarning is printed once, as one line. Gives those printed so far."""
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
