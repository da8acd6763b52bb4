"""Commands that make checkpoints and bundles: synth and build."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import checked, command
from pplex.cli.engines import engine_options
from pplex.cli.options import fit_option, kv_cache_option, lora_options, memory_option, parse_budget
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.gpus import TENSORRT_RTX, Gpu, parse_gpu
from pplex.runtime.graphs import DEFAULT_SLOTS, MAX_SLOTS
from pplex.runtime.precision import AUTO, FP32, MIXED, PRECISIONS, parse_precision


@command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--size",
    type=click.Choice(["tiny", "small", "wide", "full"]),
    default="tiny",
    help="full: the released model's size, 17 GB; wide: its widths, but two layers, 2.8 GB; small: 0.4 GB.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the weights.")
@click.option(
    "--outliers",
    is_flag=True,
    help="Add channels with large values, as trained models have; they are hard to quantize.",
)
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
    help="Depth steps: 8 for the agent's codes; 16 also for the user's, for teacher-forced checks only.",
)
@click.option(
    "--precision",
    default=AUTO,
    help=f"auto: the most faithful that fits; {', '.join(PRECISIONS)} for the language model; mixed: measured for each "
    "matrix; or per graph: temporal=int4,depth=int8.",
)
@fit_option()
@click.option(
    "--drift-budget",
    metavar="text=NATS,audio=NATS",
    callback=checked(parse_budget),
    help="As --fit, but the smallest bundle of at most this predicted drift.",
)
@memory_option("Memory of the target, such as 16GB.  [default: the GPU's; without --gpu this machine's]")
@click.option(
    "--calibration",
    default="default",
    help="To quantize with: a folder of recordings, an earlier bundle, default (synthetic speech) or none.",
)
@click.option("--capacity", type=int, help="Context steps, 12.5 a second.  [default: the checkpoint's, 4 minutes]")
@kv_cache_option
@click.option(
    "--gpu",
    help="Compile engines for this GPU: local, or a name of pplex-export plan.  [default: none]",
)
@click.option(
    "--slots",
    type=click.IntRange(1, MAX_SLOTS),
    help=f"Conversations that an engine takes at most.  [default: {DEFAULT_SLOTS}, or fewer with --precision auto]",
)
@click.option(
    "--for-engines",
    is_flag=True,
    help="Make the graphs of engines without --gpu, to validate them on the processor.",
)
@lora_options
@click.option("--no-validate", is_flag=True, help="Skip the short validation at the end.")
@engine_options
def build(
    source: str,
    out: Path,
    revision: str | None,
    depth_steps: str,
    precision: str,
    fit: int | None,
    drift_budget: tuple[float, float] | None,
    memory: int | None,
    calibration: str,
    capacity: int | None,
    kv_cache: str,
    gpu: str | None,
    slots: int | None,
    for_engines: bool,
    lora: Path | None,
    lora_scaling: float | None,
    no_validate: bool,
    engine_options: Any,
) -> None:
    """Export SOURCE, a checkpoint's folder or a hub repository such as nvidia/personaplex-7b-v1, to a bundle.

    An interrupted build keeps its finished graphs: run the same command to resume. A build ends with a short validation, if
    the bundle can run here. Beyond its precision's tolerances the exit code is 1; the bundle is kept.
    """
    from pplex.cli.progress import build_progress, tell
    from pplex.cli.waiting import ends_at_once
    from pplex.export.build import build as build_bundle
    from pplex.export.build import unchecked
    from pplex.export.build_plan import Auto, BuildOptions, Mix
    from pplex.export.early import check_before_download, check_out
    from pplex.export.source import download, find
    from pplex.export.staging import partial_folder
    from pplex.runtime.bundle import STEPS_FILE, open_bundle, parity_text
    from pplex.runtime.errors import BuildError, OutputError
    from pplex.validate.short import check_build

    _check_gpu_options(gpu, slots, engine_options, for_engines)
    _check_mix_options(precision, fit, drift_budget, memory)
    mixed, memory = precision == MIXED.name or fit is not None or drift_budget is not None, fit or memory
    auto = mixed or precision == AUTO
    if memory is not None and gpu is None and not auto:
        raise click.UsageError(
            "--memory is for --precision auto or mixed and for --gpu: leave out --memory or --precision."
        )
    options = BuildOptions(
        int(depth_steps),
        FP32 if auto else parse_precision(precision),
        None if calibration == "none" else calibration,
        capacity,
        None if gpu is None else _target(gpu, memory, engine_options),
        slots or DEFAULT_SLOTS,
        engine_options,
        for_engines,
        lora,
        lora_scaling,
        Mix(slots, memory, drift_budget) if mixed else Auto(slots, memory) if auto else None,
        kv_cache,
    )
    check_out(out)
    with ends_at_once():
        found = find(source, revision)
        check_before_download(found, out, options)
        checkpoint = download(found, tell)
    try:
        with build_progress() as progress:
            build_bundle(checkpoint, out, options, progress, tell, unchecked if no_validate else check_build)
    except (KeyboardInterrupt, BuildError, OutputError):
        if os.path.exists(partial_folder(out) / STEPS_FILE):
            click.echo(f"Finished graphs are in {partial_folder(out)}: run the same command to resume.", err=True)
        raise
    click.echo(out)
    parity = open_bundle(out, verify=False).manifest["parity"]
    click.echo(parity_text(parity), err=True)
    if parity["checked"] and not parity["passed"]:
        raise SystemExit(1)


def _target(name: str, memory_nbytes: int | None, engine_options: Any) -> Gpu:
    """The GPU to build for, with its memory if the user named it."""
    gpu = parse_gpu(name)
    if engine_options.compiled_for is not None:
        gpu = replace(gpu, kind=TENSORRT_RTX)  # even if TensorRT is the library for this GPU
    return gpu if memory_nbytes is None else replace(gpu, memory_nbytes=memory_nbytes)


def _check_mix_options(precision: str, fit: int | None, budget: tuple[float, float] | None, memory: int | None) -> None:
    """Raises UsageError for options that exclude each other."""
    if (fit is not None or budget is not None) and precision not in (AUTO, MIXED.name):
        raise click.UsageError("--fit and --drift-budget choose the form of each matrix: leave out --precision.")
    if fit is not None and memory is not None:
        raise click.UsageError("--fit already gives the memory of the target: leave out --memory.")


def _check_gpu_options(gpu: str | None, slots: int | None, engine_options: Any, for_engines: bool) -> None:
    """Raises UsageError for options that have no effect with, or without, --gpu."""
    from pplex.engines.library import DEFAULT_OPTIONS

    if gpu is None and (engine_options != DEFAULT_OPTIONS or slots is not None):
        raise click.UsageError(
            "--slots, --tf32, --workspace-mb, --optimization-level and --compiled-for apply to engines only: add --gpu."
        )
    if gpu is not None and for_engines:
        raise click.UsageError("--for-engines makes graphs for ONNX Runtime: give either it or --gpu.")
