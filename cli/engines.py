"""What `build` can ask of an engine's builder, and the commands that look at engines: inspect and plan."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import command
from pplex.cli.options import echo_report, json_option
from pplex.runtime.config import MIN_CAPACITY


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the builder, given to the command as one argument `engine_options`."""

    @click.option(
        "--tf32", is_flag=True, help="Let float32 products round their factors to TF32: faster, flips tokens."
    )
    @click.option("--workspace-mb", type=click.IntRange(min=1), help="Scratch memory of an engine at most, in MiB.")
    @click.option(
        "--optimization-level",
        type=click.IntRange(0, 5),
        help="How long TensorRT searches for kernels. Not TensorRT-RTX.",
    )
    @click.option(
        "--compiled-for",
        metavar="own|any|sm_NN",
        help="Compile with TensorRT-RTX whatever the GPU, for its own architecture, for none in particular, or for another.",
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
            raise click.UsageError(f"--compiled-for is one of {', '.join(COMPILED_FOR)}.")
        options = EngineOptions(tf32, workspace_mb, optimization_level, compiled_for)
        return command(*args, engine_options=options, **rest)

    return with_options


@command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option()
def inspect(bundle: Path, as_json: bool) -> None:
    """What BUNDLE holds: engines, GPU, precisions, layers, and the memory a session takes."""
    from pplex.engines.bundle_report import report_bundle

    echo_report(report_bundle(bundle), as_json)


@command(prints=True)
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--gpu", "gpus", multiple=True, help="A name, sm_89 or local; can be repeated.  [default: every name]")
@click.option("--precision", "precisions", multiple=True, help="As for build; can be repeated.")
@click.option(
    "--capacity",
    "capacities",
    type=click.IntRange(min=MIN_CAPACITY),
    multiple=True,
    help="Steps of context, 80 ms each.",
)
@json_option()
def plan(
    source: Path | None, gpus: tuple[str, ...], precisions: tuple[str, ...], capacities: tuple[int, ...], as_json: bool
) -> None:
    """How many conversations fit which GPU: of SOURCE, a bundle's or a checkpoint's folder, or of the released model."""
    from pplex.engines.plan_report import report_plans

    echo_report(report_plans(source, gpus, precisions, capacities), as_json)
