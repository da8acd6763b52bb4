"""The command about a bundle's voices: voices, with list, listen, add and remove."""

import json
import warnings
from pathlib import Path

import click

from pplex.cli.command import Group
from pplex.cli.options import Number, device_option, json_option, threads_option
from pplex.runtime.personas import TEACHER

SECONDS, SEED = 5.0, 0
RESTART = "A server that is running keeps the voices it has loaded: restart it."

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.group(cls=Group)
def voices() -> None:
    """List a bundle's voices, listen to them, add one from a recording, remove one."""


@voices.command("list", prints=True)
@bundle_argument
@json_option()
def list_voices(bundle: Path, as_json: bool) -> None:
    """List the voices of BUNDLE: seconds, steps of the model's memory, and where each comes from."""
    from pplex.measure.tables import aligned
    from pplex.runtime.voice_changes import open_voices
    from pplex.runtime.voice_checks import OWN_VOICE
    from pplex.runtime.voice_file import voice_steps

    opened, found = open_voices(bundle)
    steps = {name: voice_steps(voice) for name, voice in found.voices.items()}
    seconds = {name: round(count * opened.config.frame_ms / 1000, 2) for name, count in steps.items()}
    if as_json:
        rows = [
            {"name": name, "seconds": seconds[name], "steps": steps[name], "source": found.source(name)}
            for name in found.voices
        ]
        click.echo(json.dumps(rows, indent=2))
    elif not opened.config.takes_prompt:
        click.echo(f"{bundle} {OWN_VOICE}")
    elif not steps:
        click.echo(f"{bundle} has no voices. To add one: pplex-export voices add {bundle} NAME FILE")
    else:
        table = [(name, f"{seconds[name]:.2f}", str(steps[name]), found.source(name)) for name in found.voices]
        click.echo(aligned([("voice", "seconds", "steps", "source"), *table]))


@voices.command()
@bundle_argument
@click.argument("name")
@click.option("--out", required=True, help="The sample: wav, flac or ogg; - for standard output.")
@click.option("--reply", is_flag=True, help="Let the model speak, also if the voice is a recording.")
@click.option("--seconds", type=Number(0.1, 60), help=f"How long the model speaks.  [default: {SECONDS:g}]")
@click.option("--seed", type=click.IntRange(min=0), help=f"Seed of what it says.  [default: {SEED}]")
@click.option("--text-prompt", default=TEACHER, help="The persona of the model that speaks.")
@threads_option()
@device_option()
def listen(
    bundle: Path,
    name: str,
    out: str,
    reply: bool,
    seconds: float | None,
    seed: int | None,
    text_prompt: str,
    threads: int | None,
    device: str | None,
) -> None:
    """Write a sample of the voice NAME of BUNDLE.

    For a voice from a recording: the recording, as the model hears it. The checkpoint's voices have no recording: the model
    speaks in the voice, to a silent user. --reply does this for a recording, too.
    """
    from pplex.cli.progress import frames_bar
    from pplex.runtime.audio import check_audio_target, encode_audio
    from pplex.runtime.codec import DECODE, decode
    from pplex.runtime.files import write_files
    from pplex.runtime.offline import OfflineSettings, speak
    from pplex.runtime.voice_changes import check_voice, open_voices
    from pplex.runtime.voice_checks import check_takes_voices
    from pplex.runtime.voice_file import Voice

    check_audio_target(out)
    opened, found = open_voices(bundle, DECODE)
    check_takes_voices(bundle, opened.config)
    check_voice(bundle, found, name)
    voice = found.voices[name]
    if not isinstance(voice, Voice) and not reply:
        if seconds is not None or seed is not None:
            raise click.UsageError(f"{name} is a recording: --seconds and --seed have no effect without --reply.")
        pcm = decode(opened, voice, threads, device)
    else:
        if not reply:
            click.echo(f"{name} comes without a recording, so the model speaks in this voice.", err=True)
        settings = OfflineSettings(name, text_prompt, SEED if seed is None else seed)
        pcm = speak(bundle, settings, seconds or SECONDS, threads, device, frames_bar)
    write_files({out: encode_audio(out, pcm)})


@voices.command()
@bundle_argument
@click.argument("name")
@click.argument("file")
@threads_option()
@device_option()
def add(bundle: Path, name: str, file: str, threads: int | None, device: str | None) -> None:
    """Add the recording FILE to BUNDLE as the voice NAME.

    Best is 3 to 15 s of one person who speaks in a quiet room. The recording is kept as codes, and is heard as with --voice
    FILE. Doubtful recordings are added with a warning.
    """
    from pplex.runtime.audio import read_audio
    from pplex.runtime.codec import ENCODE, encode
    from pplex.runtime.errors import AudioWarning
    from pplex.runtime.voice_changes import Voices, change_voices, check_changeable, check_new, open_voices
    from pplex.runtime.voice_checks import CONSENT, check_takes_voices, faults, prepared

    def with_it(voices: Voices) -> Voices:
        check_new(bundle, voices, name)
        return voices.with_recording(name, codes, source)

    opened, found = open_voices(bundle, ENCODE)
    check_takes_voices(bundle, opened.config)
    check_new(bundle, found, name)
    check_changeable(bundle)
    pcm = read_audio(file)
    source = "standard input" if file == "-" else Path(file).name
    spoken = prepared(pcm, opened.config, source)
    for fault in faults(pcm):
        warnings.warn(f"{source}: {fault}", AudioWarning, stacklevel=2)
    codes = encode(opened, spoken, threads, device)
    change_voices(bundle, with_it)
    click.echo(f"{name}: {len(codes) * opened.config.frame_ms / 1000:.2f} s, {len(codes)} steps, from {source}")
    click.echo(f"{CONSENT}\n{RESTART}", err=True)


@voices.command()
@bundle_argument
@click.argument("name")
def remove(bundle: Path, name: str) -> None:
    """Remove the voice NAME from BUNDLE. Only a new build brings a voice of the checkpoint back."""
    from pplex.runtime.voice_changes import Voices, change_voices, check_voice, open_voices
    from pplex.runtime.voice_checks import check_takes_voices

    def without_it(voices: Voices) -> Voices:
        check_voice(bundle, voices, name)
        return voices.without(name)

    check_takes_voices(bundle, open_voices(bundle)[0].config)
    change_voices(bundle, without_it)
    click.echo(f"{name} is removed.\n{RESTART}", err=True)
