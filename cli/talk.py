"""The command that runs a bundle on recordings: run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pplex.cli.command import command
from pplex.cli.options import device_option, json_option, memory_window_option, sampling_options, threads_option
from pplex.runtime.personas import TEACHER
from pplex.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pplex.runtime.bundle import Bundle

DEFAULT_VOICE = "NATF2"
SLOTS = 8  # at most, without --slots
SLOTS_HELP = "Recordings that are answered at once. With one number of slots, a seed repeats an answer to the bit."


@command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("recordings", nargs=-1)
@click.option("--input-wav", help="What the user says: wav, flac or ogg, any rate; - for standard input.")
@click.option("--output-wav", help="What the agent says, as long as the input; - for standard output.")
@click.option("--output-text", help="JSON list with the text piece of each frame; - for standard output.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder for answers to RECORDINGS: NAME.wav, NAME.json."
)
@click.option(
    "--output-rate", type=click.IntRange(8000, 192_000), default=24_000, help="Samples a second of what the agent says."
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
@sampling_options
@click.option("--slots", type=click.IntRange(1, 256), help=f"{SLOTS_HELP}  [default: all, at most {SLOTS}]")
@threads_option()
@device_option()
@json_option("Print the timings and warnings as JSON on standard error.")
@click.pass_obj
def run(
    warnings: list[str],
    bundle: Path,
    recordings: tuple[str, ...],
    input_wav: str | None,
    output_wav: str | None,
    output_text: str | None,
    out: Path | None,
    output_rate: int,
    voice: str | None,
    text_prompt: str | None,
    greeting: str | None,
    memory_window: int | None,
    seed: int,
    sampling: Sampling,
    slots: int | None,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on a recording: write what the agent says, as audio and as text.

    For many recordings, name files or folders and --out. A recording that cannot be read is listed at the end.
    """
    from pplex.cli.progress import frames_bar
    from pplex.runtime.bundle import open_bundle
    from pplex.runtime.offline import OfflineSettings, run_offline, run_offline_many
    from pplex.runtime.recordings import answers_in

    single = _single(input_wav, output_wav, output_text, recordings, out)
    outputs = {} if single or out is None else answers_in(out, recordings, output_rate)
    opened = open_bundle(bundle, verify=False)
    settings = OfflineSettings(
        voice=chosen_voice(opened, voice),
        persona=(TEACHER if opened.config.takes_prompt else "") if text_prompt is None else text_prompt,
        seed=None if seed == -1 else seed,
        sampling=sampling,
        greeting=greeting,
        memory_window=memory_window,
        slots=slots or max(1, min(SLOTS, len(outputs))),
    )
    if single:
        report = run_offline(bundle, *single, settings, threads, device, frames_bar, output_rate)
    else:
        report = run_offline_many(bundle, outputs, settings, threads, device, frames_bar)
    as_dict = {**report.to_dict(), "warnings": warnings}
    click.echo(json.dumps(as_dict) if as_json else report.to_text(), err=True)
    if report.failures:
        raise SystemExit(1)


def chosen_voice(bundle: "Bundle", voice: str | None) -> str | None:
    """The voice that `--voice` names: None for none."""
    from pplex.runtime.voice_file import default_voice

    return default_voice(bundle.voices, DEFAULT_VOICE) if voice is None else None if voice == "none" else voice


def _single(
    input_wav: str | None,
    output_wav: str | None,
    output_text: str | None,
    recordings: tuple[str, ...],
    out: Path | None,
) -> tuple[str, str, str] | None:
    """The files of a run on one recording; None for RECORDINGS and --out. Raises UsageError for any other choice."""
    names = input_wav, output_wav, output_text
    if not recordings and out is None:
        if input_wav is None or output_wav is None or output_text is None:
            raise click.UsageError("Give --input-wav, --output-wav and --output-text. For many: RECORDINGS and --out.")
        if output_wav == output_text == "-":
            raise click.UsageError("Only one of --output-wav and --output-text can be standard output.")
        return input_wav, output_wav, output_text
    if names != (None, None, None):
        raise click.UsageError("--input-wav, --output-wav and --output-text are for one recording, without RECORDINGS.")
    if not recordings or out is None:
        raise click.UsageError(f"{'Recordings need --out FOLDER' if recordings else '--out needs RECORDINGS'}.")
    return None
