"""The `pplex-export` command: each subcommand parses, calls one function of the package and prints its result.

Heavy imports sit inside the commands, so that --help answers at once.
"""

import signal
import sys
import threading
from typing import Any

import click

from pplex.cli.benches import bench
from pplex.cli.checkpoints import build, synth
from pplex.cli.doctor import doctor, hint
from pplex.cli.engines import inspect, plan
from pplex.cli.notices import notices
from pplex.cli.serving import load, serve
from pplex.cli.talk import run
from pplex.cli.validation import validate
from pplex.runtime.errors import PplexError

_EXTRA_OF = dict.fromkeys(("torch", "onnx", "onnxscript", "onnx_ir", "huggingface_hub", "google"), "export")
_EXTRA_OF |= dict.fromkeys(("jinja2", "markupsafe", "matplotlib", "silero_vad"), "validate")
_EXTRA_OF |= dict.fromkeys(("aiohttp", "av", "cryptography", "prometheus_client"), "serve")


class _Group(click.Group):
    """Shows our errors, and what is not installed, as a message with exit code 1; a defect keeps its traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with notices() as context.obj:
                return super().invoke(context)
        except PplexError as error:
            raise click.ClickException(f"{error}{hint(error)}") from error
        except ModuleNotFoundError as error:
            extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"This command needs {error.name}, which is not installed: pip install 'pplex-export[{extra}]'"
                f"{hint(error)}"
            ) from error
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone
            raise SystemExit(1) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="pplex-export")
def main() -> None:
    """Make NVIDIA's PersonaPlex deployable: export it, compile it, run it without PyTorch."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, we clean up as for Ctrl-C


for command in (synth, build, run, serve, load, validate, bench, inspect, plan, doctor):
    main.add_command(command)
