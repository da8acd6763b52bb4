"""Measuring: bench codec, floor, frame, host, load, moshi, parting, precision, priming, scaling, soak, stages, torch."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from pplex.cli.command import Group
from pplex.cli.talk import DEVICE

if TYPE_CHECKING:
    from pplex.bench.sweep import SweepOptions


class _Report(Protocol):
    def to_dict(self) -> Any: ...

    def to_text(self) -> str: ...


def _print(report: _Report, as_json: bool) -> None:
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@click.group(cls=Group)
def bench() -> None:
    """Measure: latency per stage with median and p99, and memory."""


def _sweep_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a command that sweeps a backend; it gets them as `options` and `as_json`."""

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
            check_writable(out)  # before gigabytes are loaded
        command(*args, options=SweepOptions(slots, context_steps or CONTEXT_STEPS, frames, device, out), **rest)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="JSON report, saved after each point; an existing one is resumed.",
        ),
        click.option(
            "--device", type=click.Choice(["cpu", "cuda"]), help="What to measure.  [default: a GPU where there is one]"
        ),
        click.option("--frames", type=click.IntRange(min=5), default=200, help="Timed frames, after 10 to warm up."),
        click.option(
            "--context-steps",
            "--remembered",  # its earlier name
            "context_steps",
            type=click.IntRange(0, 1 << 20),
            multiple=True,
            help="Steps that each conversation has behind it; may be given several times.  [default: 0, 1000, 3000, 6000]",
        ),
        click.option("--slots", type=click.IntRange(1, 256), default=64, help="The most conversations at once."),
    ):
        with_options = option(with_options)
    return with_options


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@_sweep_options
def stages(bundle: Path, options: "SweepOptions", as_json: bool) -> None:
    """Every stage of BUNDLE's frame, and its lower bound: 1, 2, 4, ... conversations, up to 80 ms or full memory."""
    from pplex.bench.engine_backend import bench_stages

    _print(bench_stages(bundle, options), as_json)


@bench.command("torch", prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--how",
    type=click.Choice(["eager", "graphs", "compiled", "autotuned"]),
    required=True,
    help="PyTorch as it is, stages as CUDA graphs, or by torch.compile too, which may try out kernels for minutes.",
)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    help="Of the language model; the codec is in fp32.",
)
@_sweep_options
def torch_stages(checkpoint: Path, how: str, precision: str, options: "SweepOptions", as_json: bool) -> None:
    """The stages as PyTorch runs them, in a table as of `bench stages`: our modules, random weights, CHECKPOINT's sizes."""
    from pplex.bench.torch_backend import bench_torch

    _print(bench_torch(checkpoint, how, precision, options), as_json)


@bench.command(prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_sweep_options
def moshi(checkpoint: Path, options: "SweepOptions", as_json: bool) -> None:
    """The PyPI package moshi in a table as of `bench stages`: its model in bf16, random weights, CHECKPOINT's sizes."""
    from pplex.bench.moshi_backend import bench_moshi

    _print(bench_moshi(checkpoint, options), as_json)


@bench.command(prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--frames", type=click.IntRange(min=20), default=200, help="Timed frames, after 20 to warm up.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def codec(checkpoint: Path, frames: int, threads: int | None, as_json: bool) -> None:
    """The codec of CHECKPOINT: its exported graphs against our torch modules, and rustymimi where that is installed."""
    from pplex.bench.codec import bench_codec

    report = bench_codec(checkpoint, frames, threads)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--sessions", type=click.IntRange(min=1), default=1, help="Conversations stepped together.")
@click.option("--frames", type=click.IntRange(min=20), default=200, help="Timed frames, after 20 to warm up.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@DEVICE
@click.option("--profile", is_flag=True, help="Every graph's operators instead, on the processor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def frame(
    bundle: Path, sessions: int, frames: int, threads: int | None, device: str | None, profile: bool, as_json: bool
) -> None:
    """A whole frame of BUNDLE: every stage, with primed sessions that sample at the default settings."""
    if profile:
        if device == "cuda":
            raise click.UsageError("Operators are told apart on the processor only: leave --device out.")
        from pplex.bench.profile import profile_frame

        _print(profile_frame(bundle, sessions, frames, threads), as_json)
        return
    from pplex.bench.frame import bench_frame

    report = bench_frame(bundle, sessions, frames, threads, device)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    multiple=True,
    help="Conversations stepped together; may be given several times.  [default: 1, 8 and 64]",
)
@click.option("--frames", type=click.IntRange(min=20), default=500, help="Timed frames, after 20 to warm up.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def host(bundle: Path, sessions: tuple[int, ...], frames: int, as_json: bool) -> None:
    """What Python takes of a frame of BUNDLE beside the engines: with engines that do nothing, time and memory."""
    from pplex.bench.host import SESSIONS, bench_host

    report = bench_host(bundle, sessions or SESSIONS, frames)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(min=20),
    default=100,
    help="Of speech after the prompt, as far as the model remembers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def precision(checkpoint: Path, frames: int, as_json: bool) -> None:
    """CHECKPOINT in every precision: megabytes, and drift from float32 on the same forced steps."""
    from pplex.bench.precision import bench_precision
    from pplex.cli.progress import names_bar

    with names_bar("build") as progress:
        report = bench_precision(checkpoint, frames, progress)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(min=5), default=40, help="Timed steps of each side, which take turns.")
@click.option(
    "--torch-layers",
    type=click.IntRange(min=0),
    default=4,
    help="Layers of the temporal transformer that torch gets; its time is scaled. 0: without torch.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def floor(bundle: Path, steps: int, torch_layers: int, threads: int | None, as_json: bool) -> None:
    """A step of BUNDLE's language model against reading its weights once from memory, and against torch in bfloat16."""
    from pplex.bench.floor import bench_floor

    report = bench_floor(bundle, steps, threads, torch_layers)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(min=80),
    default=38_000,
    help="Of the conversation; two windows of at least 20, and as many before and between them.",
)
@click.option(
    "--window", type=click.IntRange(min=20), default=1_000, help="Frames timed at each end, a quarter of all at most."
)
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def soak(bundle: Path, frames: int, window: int, threads: int | None, device: str | None, as_json: bool) -> None:
    """A long conversation with BUNDLE, as fast as it goes: is it as quick, as small and in time at its end?"""
    from pplex.bench.soak import bench_soak
    from pplex.cli.progress import frames_bar

    with frames_bar(frames) as progress:
        report = bench_soak(bundle, frames, window, threads, device, progress)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--slots", type=click.IntRange(2, 256), default=32, help="The most conversations in one call.")
@click.option("--steps", type=click.IntRange(min=3), default=30, help="Timed steps of each size.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="A folder for pictures: slots.svg, ring.svg, threads.svg."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scaling(bundle: Path, slots: int, steps: int, plot: Path | None, as_json: bool) -> None:
    """How BUNDLE's cost on the processor grows with slots, with what a conversation remembers, and with threads."""
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
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="BUNDLE's checkpoint, to run in torch as well.")
@click.option("--seeds", type=click.IntRange(min=1), default=50, help="Conversations with each engine.")
@click.option("--frames", type=click.IntRange(min=1), default=500, help="Of each conversation at most.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def parting(
    bundle: Path,
    others: tuple[Path, ...],
    reference: Path | None,
    seeds: int,
    frames: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Frames until BUNDLE and another engine part that draw with the same seed: at another batch size, in torch, OTHERS."""
    from pplex.bench.parting import bench_parting

    _print(bench_parting(bundle, others, reference, seeds, frames, threads), as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--steps", type=click.IntRange(min=2), help="Of the prompt.  [default: 300, or what BUNDLE remembers if less]"
)
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def priming(bundle: Path, steps: int | None, threads: int | None, device: str | None, as_json: bool) -> None:
    """A prompt for BUNDLE: one by one against chunks of several sizes, and opening with a persona seen before."""
    from pplex.bench.priming import bench_priming

    report = bench_priming(bundle, steps, threads, device)
    _print(report, as_json)


@bench.command(prints=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--slots", type=click.IntRange(min=1), default=1, help="Conversations that it is loaded for.")
@click.option("--runs", type=click.IntRange(min=1), default=3, help="Loads after the first one.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(bundle: Path, slots: int, runs: int, threads: int | None, device: str | None, as_json: bool) -> None:
    """From nothing to BUNDLE's first spoken frame, each time in a fresh process: time and memory."""
    from pplex.bench.load import bench_load
    from pplex.cli.progress import names_bar

    with names_bar("load") as progress:
        report = bench_load(bundle, slots, runs, threads, device, progress)
    _print(report, as_json)
