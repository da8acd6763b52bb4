"""Commands that make checkpoints and bundles: synth and build."""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import command
from pplex.cli.engines import engine_options
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.gpus import TENSORRT_RTX, parse_gpu
from pplex.runtime.graphs import DEFAULT_SLOTS, MAX_SLOTS
from pplex.runtime.precision import PRECISIONS, parse_precision


@command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--size",
    type=click.Choice(["tiny", "small", "full"]),
    default="tiny",
    help="full: the released model's, 17 GB; small: 0.4 GB.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the weights.")
@click.option("--outliers", is_flag=True, help="Plant heavy channels, as trained models have: hard to quantize.")
def synth(out: Path, size: str, seed: int, outliers: bool) -> None:
    """Write a random checkpoint in the hub's layout to the folder OUT, for tests, demos and benchmarks."""
    from pplex.cli.progress import bytes_bar
    from pplex.export.synth import checkpoint_nbytes, synthesize

    with bytes_bar("synth", checkpoint_nbytes(size)) as bar:
        synthesize(out, size, seed, bar.update, outliers=outliers)
    click.echo(out)


@command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle.")
@click.option("--revision", help="Commit, tag or branch of a hub repository.  [default: its main branch, now]")
@click.option(
    "--depth-steps",
    type=click.Choice([str(CODEBOOKS), str(2 * CODEBOOKS)]),
    default=str(CODEBOOKS),
    help="Steps of the depth graph. The user's 8 change no output and only serve teacher-forced checks.",
)
@click.option(
    "--precision",
    default="fp32",
    help=f"Of the language model: {', '.join(PRECISIONS)}; or per graph, such as temporal=int4,depth=int8,mimi_decode=fp16.",
)
@click.option(
    "--calibration",
    default="default",
    help="For fp8 and int4: a folder of recordings, an earlier bundle, default (synthetic speech), or none.",
)
@click.option(
    "--capacity", type=int, help="Steps that are remembered, 12.5 a second.  [default: the checkpoint's, 4 minutes]"
)
@click.option(
    "--gpu", help="Compile engines for it: rtx-4090, sm_89, local, ...; pplex-export plan lists them.  [default: none]"
)
@click.option(
    "--slots", type=click.IntRange(1, MAX_SLOTS), default=DEFAULT_SLOTS, help="Conversations an engine holds."
)
@click.option("--no-validate", is_flag=True, help="Leave out the short validation at the end; the manifest says so.")
@engine_options
def build(
    source: str,
    out: Path,
    revision: str | None,
    depth_steps: str,
    precision: str,
    calibration: str,
    capacity: int | None,
    gpu: str | None,
    slots: int,
    no_validate: bool,
    engine_options: Any,
) -> None:
    """Export SOURCE, a checkpoint's folder or a hub repository such as nvidia/personaplex-7b-v1, to a bundle.

    A build that is interrupted keeps the graphs it has finished: the same command goes on from there. It ends with a short
    validation: exit code 1 if the bundle, which is kept, is not the same model within its precision's tolerances.
    """
    from pplex.cli.progress import build_progress
    from pplex.engines.library import DEFAULT_OPTIONS
    from pplex.export.build import BuildOptions, unchecked
    from pplex.export.build import build as build_bundle
    from pplex.export.source import resolve
    from pplex.export.staging import partial_folder
    from pplex.runtime.bundle import STEPS_FILE, open_bundle, parity_text
    from pplex.runtime.errors import BuildError, OutputError
    from pplex.validate.short import check_build

    if gpu is None and (engine_options != DEFAULT_OPTIONS or slots != DEFAULT_SLOTS):
        raise click.UsageError(
            "--slots, --tf32, --workspace-mb, --optimization-level and --compiled-for are of engines: name a --gpu."
        )
    target = None if gpu is None else parse_gpu(gpu)
    if target is not None and engine_options.compiled_for is not None:
        target = replace(target, kind=TENSORRT_RTX)  # also for those it is not made for
    options = BuildOptions(
        int(depth_steps),
        parse_precision(precision),
        None if calibration == "none" else calibration,
        capacity,
        target,
        slots,
        engine_options,
    )
    checkpoint = resolve(source, revision)
    try:
        with build_progress() as progress:
            tell = functools.partial(click.echo, err=True)
            build_bundle(checkpoint, out, options, progress, tell, unchecked if no_validate else check_build)
    except (KeyboardInterrupt, BuildError, OutputError):
        if os.path.exists(partial_folder(out) / STEPS_FILE):
            click.echo(f"What is finished is in {partial_folder(out)}: the same command goes on from there.", err=True)
        raise
    click.echo(out)
    parity = open_bundle(out, verify=False).manifest["parity"]
    click.echo(parity_text(parity), err=True)
    if parity["checked"] and not parity["passed"]:
        raise SystemExit(1)
