"""Commands that measure: bench codec, frame, host, load, precision, priming and soak."""

import json
from pathlib import Path

import click

from pplex.cli.talk import DEVICE


@click.group()
def bench() -> None:
    """Measure: latency per stage with median and p99, and memory."""


@bench.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--frames", type=click.IntRange(min=20), default=200, help="Timed frames, after 20 to warm up.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def codec(checkpoint: Path, frames: int, threads: int | None, as_json: bool) -> None:
    """The codec of CHECKPOINT: its exported graphs against our torch modules (eager), frame by frame in one run."""
    from pplex.bench.codec import bench_codec

    report = bench_codec(checkpoint, frames, threads)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@bench.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--sessions", type=click.IntRange(min=1), default=1, help="Conversations stepped together.")
@click.option("--frames", type=click.IntRange(min=20), default=200, help="Timed frames, after 20 to warm up.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def frame(bundle: Path, sessions: int, frames: int, threads: int | None, device: str | None, as_json: bool) -> None:
    """A whole frame of BUNDLE: every stage, with primed sessions that sample at the default settings."""
    from pplex.bench.frame import bench_frame

    report = bench_frame(bundle, sessions, frames, threads, device)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@bench.command()
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
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@bench.command()
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
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@bench.command()
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
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@bench.command()
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
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())


@bench.command()
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
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
