"""Options of `build` for engines, and the commands about bundles and GPUs: inspect and plan."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import command
from pplex.cli.fleet import Given, fleet_options, report_fleet
from pplex.cli.options import echo_report, json_option, kv_cache_option, memory_option
from pplex.runtime.config import MIN_CAPACITY


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the engine builder, passed to the command as one argument, `engine_options`."""

    @click.option("--tf32", is_flag=True, help="Compute float32 products in TF32: faster, changes some tokens.")
    @click.option("--workspace-mb", type=click.IntRange(min=1), help="Limit of an engine's scratch memory, in MiB.")
    @click.option(
        "--optimization-level",
        type=click.IntRange(0, 5),
        help="How long TensorRT (not RTX) searches for kernels.",
    )
    @click.option(
        "--compiled-for",
        metavar="own|any|sm_NN",
        help="Use TensorRT-RTX: for the GPU's own architecture, any, or sm_NN.",
    )
    @functools.wraps(command)
    def with_options(
        *args: Any,
        tf32: bool,
        workspace_mb: int | None,
        optimization_level: int | None,
        compiled_for: str | None,
        **rest: Any,
    ) -> Any:
        from pplex.engines.library import COMPILED_FOR, EngineOptions

        if compiled_for not in (None, *COMPILED_FOR):
            raise click.UsageError(
                f"--compiled-for {compiled_for} is unknown. Choose one of {', '.join(COMPILED_FOR)}."
            )
        options = EngineOptions(tf32, workspace_mb, optimization_level, compiled_for)
        return command(*args, engine_options=options, **rest)

    return with_options


@command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="First compare every file's SHA-256 with the manifest.")
@json_option()
def inspect(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show the contents of BUNDLE: engines, GPU, precisions, layers, and memory per session."""
    from pplex.engines.bundle_report import report_bundle

    echo_report(report_bundle(bundle, verify), as_json)


@command(prints=True)
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--gpu", "gpus", multiple=True, help="A name, sm_89 or local; can be repeated.  [default: all names]")
@click.option("--precision", "precisions", multiple=True, help="As for build; can be repeated.")
@click.option(
    "--capacity",
    "capacities",
    type=click.IntRange(min=MIN_CAPACITY),
    multiple=True,
    help="Steps of context, 80 ms each.",
)
@kv_cache_option
@memory_option("Memory of the GPU, such as 16GB; without --gpu, that of a processor's machine.  [default: each GPU's]")
@json_option()
@fleet_options
def plan(
    source: Path | None,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    capacities: tuple[int, ...],
    kv_cache: str,
    memory: int | None,
    as_json: bool,
    fleet: Given | None,
) -> None:
    """Show how many conversations fit each GPU, for the bundle or checkpoint SOURCE or for the released model.

    With --memory and without --gpu, show it for a processor with this memory. With --fleet, show how many replicas a load
    needs; exit code 1 if --replicas are not enough.
    """
    from pplex.engines.plan_report import report_plans
    from pplex.engines.processor_report import report_processor

    if fleet is not None:
        report = report_fleet(source, gpus, precisions, capacities, memory, fleet)
        echo_report(report, as_json)
        if not report.plan.enough:
            raise SystemExit(1)
    elif memory is not None and not gpus:
        echo_report(report_processor(source, memory, precisions, capacities, kv_cache), as_json)
    else:
        echo_report(report_plans(source, gpus, precisions, capacities, memory, kv_cache), as_json)
