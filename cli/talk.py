"""The command that runs a bundle on a recording: run."""

import json
from pathlib import Path

import click

from pplex.cli.command import command
from pplex.cli.options import device_option, json_option, memory_window_option, threads_option
from pplex.runtime.config import MAX_CANDIDATES
from pplex.runtime.sampling import DEFAULT_SAMPLING

DEFAULT_VOICE = "NATF2"
DEFAULT_PERSONA = (  # the reference's
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
)


@command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input-wav", required=True, help="What the user says: wav, flac or ogg, any rate; - for standard input."
)
@click.option("--output-wav", required=True, help="What the agent says, as long as the input; - for standard output.")
@click.option(
    "--output-text", required=True, help="JSON list with the text piece of each frame; - for standard output."
)
@click.option(
    "--voice",
    "--voice-prompt",
    help=f"A voice of the bundle, an audio file of the voice to imitate, or none.  [default: {DEFAULT_VOICE}, or the first]",
)
@click.option("--text-prompt", help="The persona.  [default: a friendly teacher, as in the original code]")
@click.option("--greeting", help="What the agent says first, word for word.")
@memory_window_option()
@click.option("--seed", type=click.IntRange(min=-1), default=-1, help="Seed of the sampling; -1: a new one each time.")
@click.option("--greedy", is_flag=True, help="Take the most probable token instead of sampling.")
@click.option(
    "--temp-audio", type=float, default=DEFAULT_SAMPLING.audio_temperature, help="Temperature of the audio tokens."
)
@click.option(
    "--temp-text", type=float, default=DEFAULT_SAMPLING.text_temperature, help="Temperature of the text tokens."
)
@click.option(
    "--topk-audio",
    type=click.IntRange(1, MAX_CANDIDATES),
    default=DEFAULT_SAMPLING.audio_top_k,
    help="Sample from this many of the most probable audio tokens.",
)
@click.option(
    "--topk-text",
    type=click.IntRange(1, MAX_CANDIDATES),
    default=DEFAULT_SAMPLING.text_top_k,
    help="Sample from this many of the most probable text tokens.",
)
@threads_option()
@device_option()
@json_option("Print the timings and warnings as JSON on standard error.")
@click.pass_obj
def run(
    warnings: list[str],
    bundle: Path,
    input_wav: str,
    output_wav: str,
    output_text: str,
    voice: str | None,
    text_prompt: str | None,
    greeting: str | None,
    memory_window: int | None,
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
    """Run BUNDLE on a recording: write what the agent says, as audio and as text."""
    from pplex.cli.progress import frames_bar
    from pplex.runtime.bundle import open_bundle
    from pplex.runtime.offline import OfflineSettings, run_offline
    from pplex.runtime.sampling import GREEDY, Sampling
    from pplex.runtime.voice_file import default_voice

    if output_wav == output_text == "-":
        raise click.UsageError("Only one of --output-wav and --output-text can be standard output.")
    opened = open_bundle(bundle, verify=False)
    if voice is None:
        voice = default_voice(opened.voices, DEFAULT_VOICE)
    if text_prompt is None:
        text_prompt = DEFAULT_PERSONA if opened.config.takes_prompt else ""
    settings = OfflineSettings(
        voice=None if voice == "none" else voice,
        persona=text_prompt,
        seed=None if seed == -1 else seed,
        sampling=GREEDY if greedy else Sampling(temp_text, topk_text, temp_audio, topk_audio),
        greeting=greeting,
        memory_window=memory_window,
    )
    report = run_offline(bundle, input_wav, output_wav, output_text, settings, threads, device, frames_bar)
    as_dict = {**report.to_dict(), "warnings": warnings}
    click.echo(json.dumps(as_dict) if as_json else report.to_text(), err=True)
