"""The `pplex-export` command: each subcommand parses, calls one function of the package and prints its result.

Heavy imports sit inside the commands, so that --help answers at once.
"""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from pplex.cli.engines import engine_options, inspect, plan
from pplex.runtime.config import CODEBOOKS, MAX_CANDIDATES
from pplex.runtime.errors import PplexError
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.precision import PRECISIONS, parse_precision

DEFAULT_VOICE = "NATF2"
DEFAULT_PERSONA = (  # the reference's
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
)


DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What ONNX graphs run on; compiled engines run on the GPU they are for.  [default: a GPU where there is one]",
)

_EXTRA_OF = dict.fromkeys(("torch", "onnx", "onnxscript", "onnx_ir", "huggingface_hub", "google"), "export")


class _Group(click.Group):
    """Shows our errors, and what is not installed, as a message with exit code 1; a defect keeps its traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except PplexError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"This command needs {error.name}, which is not installed: pip install 'pplex-export[{extra}]'"
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


@main.command()
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


@main.command()
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
@click.option("--slots", type=click.IntRange(1, 256), default=8, help="Conversations an engine holds at once.")
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
    engine_options: Any,
) -> None:
    """Export SOURCE, a checkpoint's folder or a hub repository such as nvidia/personaplex-7b-v1, to a bundle.

    A build that is interrupted keeps the graphs it has finished: the same command goes on from there.
    """
    from pplex.cli.progress import build_progress
    from pplex.export.build import BuildOptions
    from pplex.export.build import build as build_bundle
    from pplex.export.source import resolve
    from pplex.export.staging import partial_folder

    options = BuildOptions(
        int(depth_steps),
        parse_precision(precision),
        None if calibration == "none" else calibration,
        capacity,
        None if gpu is None else parse_gpu(gpu),
        slots,
        engine_options,
    )
    checkpoint = resolve(source, revision)
    try:
        with build_progress() as progress:
            build_bundle(checkpoint, out, options, progress, lambda line: click.echo(line, err=True))
    finally:
        if partial_folder(out).exists():
            click.echo(f"What is finished is in {partial_folder(out)}: the same command goes on from there.", err=True)
    click.echo(out)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--input-wav", required=True, help="The user's side: wav, flac or ogg, any rate; - for standard input.")
@click.option("--output-wav", required=True, help="The agent's side, as long as the input; - for standard output.")
@click.option(
    "--output-text", required=True, help="JSON list with the text piece of each frame; - for standard output."
)
@click.option(
    "--voice",
    "--voice-prompt",
    default=DEFAULT_VOICE,
    help="One of the bundle's voices, an audio file of the voice to take on, or none.",
)
@click.option("--text-prompt", default=DEFAULT_PERSONA, help="The persona.")
@click.option("--seed", type=click.IntRange(min=-1), default=-1, help="Of the sampling; -1: another one each time.")
@click.option("--greedy", is_flag=True, help="Take the most probable token instead of sampling.")
@click.option("--temp-audio", type=float, default=0.8, help="Temperature of the audio tokens.")
@click.option("--temp-text", type=float, default=0.7, help="Temperature of the text tokens.")
@click.option("--topk-audio", type=click.IntRange(1, MAX_CANDIDATES), default=250, help="Audio tokens to choose from.")
@click.option("--topk-text", type=click.IntRange(1, MAX_CANDIDATES), default=25, help="Text tokens to choose from.")
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads.  [default: all]")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the timings as JSON on standard error.")
def run(
    bundle: Path,
    input_wav: str,
    output_wav: str,
    output_text: str,
    voice: str,
    text_prompt: str,
    seed: int,
    greedy: bool,
    temp_audio: float,
    temp_text: float,
    topk_audio: int,
    topk_text: int,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Let the model of BUNDLE listen to a recording: its speech and its text come out."""
    from pplex.cli.progress import frames_bar
    from pplex.runtime.offline import Conversation, run_offline
    from pplex.runtime.session import GREEDY, Sampling

    if output_wav == output_text == "-":
        raise click.UsageError("Only one of --output-wav and --output-text can be standard output.")
    conversation = Conversation(
        voice=None if voice == "none" else voice,
        persona=text_prompt,
        seed=None if seed == -1 else seed,
        sampling=GREEDY if greedy else Sampling(temp_text, topk_text, temp_audio, topk_audio),
    )
    report = run_offline(bundle, input_wav, output_wav, output_text, conversation, threads, device, frames_bar)
    click.echo(json.dumps(report.to_dict()) if as_json else report.to_text(), err=True)


main.add_command(inspect)
main.add_command(plan)


@main.group()
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
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--frames", type=click.IntRange(min=20), default=100, help="Of conversation, after the prompt.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def precision(checkpoint: Path, frames: int, as_json: bool) -> None:
    """CHECKPOINT in every precision: megabytes, and drift from float32 on the same forced steps."""
    from pplex.bench.precision import bench_precision
    from pplex.cli.progress import names_bar

    with names_bar("build") as progress:
        report = bench_precision(checkpoint, frames, progress)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
