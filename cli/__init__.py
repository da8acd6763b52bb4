"""The `pplex-export` command. Each subcommand parses its options, calls one function of the package and prints the result.

`checkpoints` has synth and build, `talk` run, `voices` voices, `serving` serve and load, `scaling` scale, `validation`
validate, `fdb` fdb, `benches` bench, `engines` inspect and plan, `hub` push, `doctor` doctor. Heavy imports are inside the
commands, so --help is fast.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from pplex.cli.notices import notices
from pplex.cli.streams import open_standard_streams
from pplex.runtime.errors import EngineError, PplexError
from pplex.runtime.files import access_error
from pplex.runtime.libraries import library_error

_MODULES = {
    "synth": "checkpoints",
    "build": "checkpoints",
    "run": "talk",
    "voices": "voices",
    "serve": "serving",
    "load": "serving",
    "scale": "scaling",
    "validate": "validation",
    "fdb": "fdb",
    "bench": "benches",
    "inspect": "engines",
    "plan": "engines",
    "push": "hub",
    "doctor": "doctor",
}


class _Group(click.Group):
    """The commands. Each is imported when it is used. An error that the user can fix becomes a message with exit code 1."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in _MODULES and name not in self.commands:
            self.add_command(getattr(import_module(f"pplex.cli.{_MODULES[name]}"), name))
        return super().get_command(context, name)

    def main(self, *args: Any, **rest: Any) -> Any:
        open_standard_streams()
        return super().main(*args, **rest)

    def make_context(self, *args: Any, **rest: Any) -> click.Context:
        with _messages():
            return super().make_context(*args, **rest)

    def invoke(self, context: click.Context) -> Any:
        with _messages(), notices() as context.obj:
            return super().invoke(context)


@contextmanager
def _messages() -> Iterator[None]:
    """Turn our errors, and those of libraries and files, into messages. A bug of ours keeps its traceback."""
    try:
        yield
    except PplexError as error:
        raise click.ClickException(f"{error}{_hint(error)}") from error
    except BrokenPipeError:
        sys.stderr.close()  # the program that reads our output has ended
        raise SystemExit(1) from None
    except Exception as error:
        known = library_error(error) or (access_error(error) if isinstance(error, OSError) else None)
        if known is None:
            raise
        raise click.ClickException(f"{known}{_hint(known)}") from error


def _hint(error: PplexError) -> str:
    """The hint for engine errors: most are faults of the machine, and `doctor` examines it."""
    return "\nTo check this machine: pplex-export doctor" if isinstance(error, EngineError) else ""


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="pplex-export")
def main() -> None:
    """Make NVIDIA's PersonaPlex deployable: export it, compile it, run it without PyTorch."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
