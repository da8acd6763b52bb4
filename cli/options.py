"""Options of several commands, each declared once, and the printing of reports."""

import json
from collections.abc import Callable
from typing import Any, Protocol

import click

Option = Callable[[Any], Any]  # a decorator of a command

MAX_THREADS = 256


class Printable(Protocol):
    """A result that can be printed as text or as JSON."""

    def to_dict(self) -> Any: ...

    def to_text(self) -> str: ...


def json_option(text: str = "Print JSON.") -> Option:
    """`--json`, passed to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def threads_option(text: str = "Processor threads.  [default: all]") -> Option:
    """`--threads`, None by default."""
    return click.option("--threads", type=click.IntRange(1, MAX_THREADS), help=text)


def device_option(
    text: str = "Where ONNX graphs run; compiled engines run on their GPU.  [default: a GPU if there is one]",
) -> Option:
    """`--device`, None by default: a GPU if there is one."""
    return click.option("--device", type=click.Choice(["cpu", "cuda"]), help=text)


def echo_report(report: Printable, as_json: bool) -> None:
    """Print a report to standard output."""
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
