"""The command that examines the machine: doctor."""

import json
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import checked, command
from pplex.cli.options import device_option, json_option
from pplex.doctor.findings import AIMS, Question
from pplex.server.addresses import parse_host

_FOR_BUILD, _FOR_SERVE = ("out", "precision", "gpu", "hub"), ("slots", "host", "port", "tls_folder")
_IRRELEVANT = {"build": ("device", *_FOR_SERVE), "run": (*_FOR_BUILD, *_FOR_SERVE), "serve": _FOR_BUILD}


@command(prints=True)
@click.argument("aim", required=False, metavar="[build|run|serve]")
@click.argument("source", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bundle"), help="Folder of the planned bundle.")
@click.option("--precision", help="Precision of the planned bundle.  [default: auto, and list what fits]")
@click.option("--gpu", help="GPU to compile engines for, as for build.")
@click.option("--hub", is_flag=True, help="Also ask the hub: login, and access to the repository.")
@device_option("Where ONNX graphs would run, as for run.")
@click.option("--slots", type=click.IntRange(1), default=8, help="Conversations to serve at once.")
@click.option("--host", default="127.0.0.1", callback=checked(parse_host), help="Address the server would listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8998, help="Port of the server.")
@click.option(
    "--ssl", "tls_folder", type=click.Path(path_type=Path), help="Folder of the server with cert.pem and key.pem."
)
@json_option()
@click.pass_context
def doctor(context: click.Context, /, aim: str | None, source: str | None, as_json: bool, **options: Any) -> None:
    """Check whether this machine can build, run and serve, and print the next command.

    SOURCE is the bundle to run or serve, or the checkpoint to build: a folder or a repository. Nothing is sent over the
    network without --hub. Exit code 1 if the named command cannot work. Without a name, doctor checks all three commands
    and the exit code is 0.
    """
    from pplex.doctor.examination import diagnose
    from pplex.doctor.report import to_dict, to_text
    from pplex.runtime.gpus import parse_gpu
    from pplex.runtime.precision import AUTO, parse_precision

    if aim is not None and aim not in AIMS:  # a bundle or a checkpoint alone
        if source is not None:
            raise click.UsageError(f"{aim} is not one of {', '.join(AIMS)}.")
        aim, source = None, aim
    _refuse_irrelevant(context, aim)
    if options["precision"] == AUTO:
        options["precision"] = None
    if options["precision"] is not None:
        parse_precision(options["precision"])
    if options["gpu"] not in (None, "local"):
        parse_gpu(options["gpu"])
    diagnosis = diagnose(Question(aim, source, **options))
    click.echo(json.dumps(to_dict(diagnosis), indent=2, default=str) if as_json else to_text(diagnosis))
    if not diagnosis.passed:
        raise SystemExit(1)


def _refuse_irrelevant(context: click.Context, aim: str | None) -> None:
    """Refuse options that the named command does not use, instead of ignoring them."""
    given = (name for name in _IRRELEVANT.get(aim or "", ()) if _is_given(context, name))
    for name in given:
        option = "--ssl" if name == "tls_folder" else f"--{name}"
        raise click.UsageError(f"{option} has no effect on doctor {aim}: leave it out.")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
