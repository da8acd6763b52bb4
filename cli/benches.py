"""The command bench. Its subcommands measure time and memory."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pplex.cli.command import Group
from pplex.cli.options import device_option, echo_report, json_option, memory_window_option, threads_option

if TYPE_CHECKING:
    from pplex.bench.sweep import SweepOptions


@click.group(cls=Group)
def bench() -> None:
    """Measure latency per stage (median and p99) and memory."""


def _sweep_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a command that measures one backend of the sweep: passed to it as `options` and `as_json`."""

    @functools.wraps(command)
    def with_options(
        *args: Any,
        slots: int,
        context_steps: tuple[int, ...],
        frames: int,
        device: str | None,
        out: Path | None,
        **rest: Any,
    ) -> None:
        from pplex.bench.sweep import CONTEXT_STEPS, SweepOptions
        from pplex.runtime.files import check_writable

        if out is not None:
            check_writable(out)  # check this before loading gigabytes
        command(*args, options=SweepOptions(slots, context_steps or CONTEXT_STEPS, frames, device, out), **rest)

    for option in (
        json_option(),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="JSON file, saved after each point; an existing file is resumed.",
        ),
        device_option("What to measure.  [default: a GPU if there is one]"),
        click.option("--frames", type=click.IntRange(min=5), default=200, help="Timed frames, after 10 to warm up."),
        click.option(
            "--context-steps",
            "--remembered",  # the option's earlier name
            "context_steps",
            type=click.IntRange(0, 1 << 20),
            multiple=True,
            help="Context steps of each conversation; can be repeated.  [default: 0, 1000, 3000, 6000]",
        ),
        click.option(
            "--slots", type=click.IntRange(1, 256), default=64, help="Largest number of conversations at once."
        ),
    ):
        with_options = option(with_options)
    return with_options


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@_sweep_options
def stages(bundle: Path, options: "SweepOptions", as_json: bool) -> None:
    """Time each stage of a frame of BUNDLE, for 1, 2, 4, ... conversations, until a frame takes 80 ms or memory is full.

    Also shows each stage's lower bound: the time to read its weights and KV cache once.
    """
    from pplex.bench.engine_backend import bench_stages

    echo_report(bench_stages(bundle, options), as_json)


@bench.command("torch", prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--how",
    type=click.Choice(["eager", "graphs", "compiled", "autotuned"]),
    required=True,
    help="Plain PyTorch, CUDA graphs, torch.compile, or torch.compile that searches for kernels for minutes.",
)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    help="Precision of the language model; the codec is in fp32.",
)
@_sweep_options
def torch_stages(checkpoint: Path, how: str, precision: str, options: "SweepOptions", as_json: bool) -> None:
    """Time the stages in PyTorch, in the same table as `bench stages`: our modules, random weights, CHECKPOINT's sizes."""
    from pplex.bench.torch_backend import bench_torch

    echo_report(bench_torch(checkpoint, how, precision, options), as_json)


@bench.command(prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_sweep_options
def moshi(checkpoint: Path, options: "SweepOptions", as_json: bool) -> None:
    """Time the PyPI package moshi, in the same table as `bench stages`: bf16, random weights, CHECKPOINT's sizes."""
    from pplex.bench.moshi_backend import bench_moshi

    echo_report(bench_moshi(checkpoint, options), as_json)


@bench.command(prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--frames", type=click.IntRange(min=20), default=200, help="Timed frames, after 20 to warm up.")
@threads_option()
@json_option()
def codec(checkpoint: Path, frames: int, threads: int | None, as_json: bool) -> None:
    """Time CHECKPOINT's codec: exported graphs, our torch modules, and rustymimi if it is installed."""
    from pplex.bench.codec import bench_codec

    echo_report(bench_codec(checkpoint, frames, threads), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--sessions", type=click.IntRange(min=1), default=1, help="Conversations stepped together.")
@click.option("--frames", type=click.IntRange(min=20), default=200, help="Timed frames, after 20 to warm up.")
@threads_option()
@device_option()
@click.option("--profile", is_flag=True, help="Time the operators of each graph instead, on the processor.")
@json_option()
def frame(
    bundle: Path, sessions: int, frames: int, threads: int | None, device: str | None, profile: bool, as_json: bool
) -> None:
    """Time a whole frame of BUNDLE, stage by stage, with primed sessions and default sampling."""
    if profile:
        if device == "cuda":
            raise click.UsageError("--profile works on the processor only: leave --device out.")
        from pplex.bench.profile import profile_frame

        echo_report(profile_frame(bundle, sessions, frames, threads), as_json)
        return
    from pplex.bench.frame import bench_frame

    echo_report(bench_frame(bundle, sessions, frames, threads, device), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    multiple=True,
    help="Conversations stepped together; can be repeated.  [default: 1, 8 and 64]",
)
@click.option("--frames", type=click.IntRange(min=20), default=500, help="Timed frames, after 20 to warm up.")
@json_option()
def host(bundle: Path, sessions: tuple[int, ...], frames: int, as_json: bool) -> None:
    """Time and memory of our Python code in a frame of BUNDLE, measured with engines that do nothing."""
    from pplex.bench.host import SESSIONS, bench_host

    echo_report(bench_host(bundle, sessions or SESSIONS, frames), as_json)


@bench.command(prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(min=20),
    default=100,
    help="Frames of speech after the prompt, at most the model's context.",
)
@click.option(
    "--only",
    metavar="TEXT",
    multiple=True,
    help="Only the rows whose name starts with TEXT, such as int4; can be repeated.",
)
@json_option()
def precision(checkpoint: Path, frames: int, only: tuple[str, ...], as_json: bool) -> None:
    """Compare all precisions of CHECKPOINT: megabytes, and drift from float32 on the same forced steps."""
    from pplex.bench.precision import VARIANTS, bench_precision
    from pplex.cli.progress import names_bar

    names = [name for name in VARIANTS if not only or name.startswith(only)]
    if not names:
        raise click.UsageError(f"No row starts with {' or '.join(only)}. The rows are: {'; '.join(VARIANTS)}.")
    with names_bar("build") as progress:
        echo_report(bench_precision(checkpoint, frames, names, progress), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--steps", type=click.IntRange(min=5), default=40, help="Timed steps of each backend; backends take turns."
)
@click.option(
    "--torch-layers",
    type=click.IntRange(min=0),
    default=4,
    help="Layers of the temporal transformer in torch; the time is scaled to all. 0: without torch.",
)
@threads_option()
@json_option()
def floor(bundle: Path, steps: int, torch_layers: int, threads: int | None, as_json: bool) -> None:
    """Compare a step of BUNDLE's temporal and depth graph with one read of their weights, and with torch in bfloat16."""
    from pplex.bench.floor import bench_floor

    echo_report(bench_floor(bundle, steps, threads, torch_layers), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(min=80),
    default=38_000,
    help="Frames of the conversation, at least 80.",
)
@click.option(
    "--window",
    type=click.IntRange(min=20),
    default=1_000,
    help="Frames timed at the start and at the end, at most a quarter of all.",
)
@memory_window_option()
@threads_option()
@device_option()
@json_option()
def soak(
    bundle: Path,
    frames: int,
    window: int,
    memory_window: int | None,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run a long conversation with BUNDLE at full speed. Compare frame times and memory at its start and at its end."""
    from pplex.bench.soak import bench_soak
    from pplex.cli.progress import frames_bar

    with frames_bar(frames) as progress:
        echo_report(bench_soak(bundle, frames, window, threads, device, progress, memory_window), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--slots", type=click.IntRange(2, 256), default=32, help="Largest number of conversations in one call.")
@click.option("--steps", type=click.IntRange(min=3), default=30, help="Timed steps of each size.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Folder for the plots slots.svg, ring.svg and threads.svg."
)
@json_option()
def scaling(bundle: Path, slots: int, steps: int, plot: Path | None, as_json: bool) -> None:
    """Measure how BUNDLE's time on the processor grows with slots, context steps and threads."""
    from pplex.bench.scaling import bench_scaling, scaling_plots
    from pplex.cli.progress import names_bar
    from pplex.runtime.files import check_writable, write_files

    if plot:
        plot.mkdir(parents=True, exist_ok=True)
        check_writable(plot / "slots.svg")
    with names_bar("scaling") as progress:
        report = bench_scaling(bundle, slots, steps, progress)
    if plot:
        write_files({str(plot / name): picture for name, picture in scaling_plots(report).items()})
    echo_report(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="BUNDLE's checkpoint, to compare with torch too.")
@click.option("--seeds", type=click.IntRange(min=1), default=50, help="Number of conversations with each backend.")
@click.option("--frames", type=click.IntRange(min=1), default=500, help="Largest number of frames of a conversation.")
@threads_option()
@json_option()
def parting(
    bundle: Path,
    others: tuple[Path, ...],
    reference: Path | None,
    seeds: int,
    frames: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Count the frames until conversations with the same seed differ.

    Compares BUNDLE with itself at another batch size, with torch (--reference) and with the bundles OTHERS.
    """
    from pplex.bench.parting import bench_parting

    echo_report(bench_parting(bundle, others, reference, seeds, frames, threads), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    help="Steps of the prompt.  [default: 300, or BUNDLE's context if it is shorter]",
)
@threads_option()
@device_option()
@json_option()
def priming(bundle: Path, steps: int | None, threads: int | None, device: str | None, as_json: bool) -> None:
    """Time priming (prefill) of BUNDLE: step by step, in chunks of several sizes, and with a cached persona."""
    from pplex.bench.priming import bench_priming

    echo_report(bench_priming(bundle, steps, threads, device), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--slots", type=click.IntRange(min=1), default=1, help="Number of slots to load the bundle with.")
@click.option("--runs", type=click.IntRange(min=1), default=3, help="Loads after the first one.")
@threads_option()
@device_option()
@json_option()
def load(bundle: Path, slots: int, runs: int, threads: int | None, device: str | None, as_json: bool) -> None:
    """Time and memory from process start to BUNDLE's first frame of speech, in a new process each time."""
    from pplex.bench.load import bench_load
    from pplex.cli.progress import names_bar

    with names_bar("load") as progress:
        echo_report(bench_load(bundle, slots, runs, threads, device, progress), as_json)
