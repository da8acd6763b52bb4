"""The command that compares a bundle with its checkpoint: validate."""

import json
from functools import partial
from pathlib import Path

import click

from pplex.cli.command import command
from pplex.cli.options import device_option, echo_report, json_option, lora_options, parse_limits, threads_option

FOLDER = click.Path(path_type=Path)
SECTIONS = ("graphs", "drift", "codec", "streaming", "conversation")


@command(prints=True)
@click.argument("bundle", required=False, type=FOLDER)
@click.option(
    "--reference",
    help="The checkpoint the bundle was built from: a folder, or a hub repository.  [default: the manifest's repository]",
)
@lora_options
@click.option("--wavs", type=FOLDER, help="Folder of speech recordings to validate with.  [default: synthetic speech]")
@click.option("--report", "out", type=FOLDER, help="Folder for report.html, report.md, report.json and the recordings.")
@click.option(
    "--frames",
    type=click.IntRange(min=64),
    help="Frames whose tokens are forced.  [default: 3000, or 128 more than the context if that is more]",
)
@click.option(
    "--only", type=click.Choice(SECTIONS), multiple=True, help="Run only this section; can be repeated.  [default: all]"
)
@click.option(
    "--tolerance",
    "limits",
    multiple=True,
    callback=parse_limits("drift.text_kl=0.05"),
    help="Another limit for a measure, as NAME=LIMIT; can be repeated.",
)
@click.option(
    "--compare", nargs=2, type=FOLDER, help="Show two earlier reports side by side instead: two folders or JSON files."
)
@threads_option("Processor threads of the engines.  [default: all]")
@device_option()
@json_option()
def validate(
    bundle: Path | None,
    reference: str | None,
    lora: Path | None,
    lora_scaling: float | None,
    wavs: Path | None,
    out: Path | None,
    frames: int | None,
    only: tuple[str, ...],
    limits: dict[str, float],
    compare: tuple[Path, Path] | None,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Check that BUNDLE is the same model as its checkpoint. Exit code 1 if it exceeds a tolerance.

    Compares layers, drift, codec, streaming state and conversations: docs/validation.md explains the figures.
    """
    if (bundle is None) == (compare is None):
        raise click.UsageError("Name a bundle to validate, or two reports to --compare.")
    if bundle is None:
        assert compare is not None
        if lora or reference or wavs or frames or only or limits or threads or device:
            raise click.UsageError("--compare shows two finished reports: it works with --report and --json only.")
        _compare(*compare, out, as_json)
        return
    from pplex.cli.progress import names_bar
    from pplex.cli.waiting import ends_at_once
    from pplex.export.checkpoint import open_checkpoint
    from pplex.export.source import resolve
    from pplex.runtime.bundle import open_bundle
    from pplex.validate.output import check_folder, report_files, write_folder
    from pplex.validate.report.text import to_text
    from pplex.validate.validation import ValidateOptions, reference_of
    from pplex.validate.validation import validate as run

    if out:
        check_folder(out)
    opened = open_bundle(bundle)
    with ends_at_once():
        source = resolve(*reference_of(opened, reference), partial(click.echo, err=True))
    checkpoint = open_checkpoint(source.folder, lora, lora_scaling)
    options = ValidateOptions(frames, wavs, only or SECTIONS, limits, device, threads)
    with names_bar("validate") as progress:
        done = run(opened, checkpoint, options, progress)
    if out:
        write_folder(out, report_files(done))
    click.echo(json.dumps(done.report.to_dict(), indent=2) if as_json else to_text(done.report))
    if not done.report.passed:
        raise SystemExit(1)


def _compare(a: Path, b: Path, out: Path | None, as_json: bool) -> None:
    from pplex.validate.output import check_folder, comparison_files, write_folder
    from pplex.validate.report.compare import compare
    from pplex.validate.report.schema import read_report

    if out:
        check_folder(out)
    comparison = compare(read_report(a), read_report(b))
    if out:
        write_folder(out, comparison_files(comparison))
    echo_report(comparison, as_json)
