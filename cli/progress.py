"""Progress bars on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from tqdm import tqdm


@contextmanager
def bytes_bar(name: str, total: int) -> Iterator[Any]:
    """A bar that counts bytes up to `total`."""
    with tqdm(desc=name, total=total, unit="B", unit_scale=True, mininterval=0.2) as bar:
        yield bar


@contextmanager
def build_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that shows the stage of `export.build` and counts bytes of weights."""
    with tqdm(desc="build", unit="B", unit_scale=True, mininterval=0.2) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(stage, refresh=done == 0)
            bar.update(done)

        yield progress


def tell(text: str) -> None:
    """Print text to standard error, above a bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        click.echo(text, err=True)


@contextmanager
def frames_bar(total: int) -> Iterator[Callable[..., Any]]:
    """A bar that counts frames, one or a number of them at a time."""
    with tqdm(desc="run", total=total, unit="frame", mininterval=0.2) as bar:
        yield bar.update


@contextmanager
def samples_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that shows the number of finished samples, of all, and the time left."""
    with tqdm(desc=name, unit="sample", mininterval=0.2) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


@contextmanager
def names_bar(name: str) -> Iterator[Callable[[str], None]]:
    """A line with the current stage and the time so far."""
    with tqdm(desc=name, bar_format="{desc} {elapsed}", mininterval=0.2) as bar:
        yield lambda stage: bar.set_description(f"{name} {stage}")
