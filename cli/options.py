"""Options of several commands, each declared once, and the printing of reports."""

import json
import re
from collections.abc import Callable
from typing import Any, Protocol

import click

from pplex.cli.command import checked
from pplex.runtime.errors import ConfigError

Option = Callable[[Any], Any]  # a decorator of a command

MAX_THREADS = 256
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


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


def memory_option(text: str) -> Option:
    """`--memory`, a size such as 16GB, passed in bytes; None by default."""
    return click.option("--memory", metavar="SIZE", callback=checked(parse_memory), help=text)


def parse_memory(text: str) -> int:
    """Bytes of a size with its unit: 8GB, 7.5 GiB, 512MB. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([MGT]i?B)", text.strip(), re.ASCII | re.IGNORECASE)
    nbytes = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not nbytes:
        raise ConfigError(f"{text!r} is not a size of memory. Give a number and its unit: 8GB, 7.5GiB or 512MB.")
    return nbytes


def echo_report(report: Printable, as_json: bool) -> None:
    """Print a report to standard output."""
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
