"""The command that answers the samples of Full-Duplex-Bench: fdb run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import command
from pplex.cli.options import device_option, echo_report, json_option, sampling_options, threads_option
from pplex.cli.talk import DEFAULT_VOICE, SLOTS, SLOTS_HELP, chosen_voice
from pplex.runtime.sampling import Sampling

FOLDER = click.Path(path_type=Path)
TASKS = "pause", "backchannel", "turn-taking", "interruption", "other", "service"  # as in `PERSONAS`


@command(prints=True)
@click.argument("bundle", type=FOLDER)
@click.argument("data", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The folder for the answers. An interrupted run goes on in it.")
@click.option("--slots", type=click.IntRange(1, 256), default=SLOTS, help=SLOTS_HELP)
@click.option(
    "--voice",
    "--voice-prompt",
    help=f"A voice of the bundle, an audio file of the voice to imitate, or none.  [default: {DEFAULT_VOICE}, or the first]",
)
@click.option(
    "--text-prompt",
    help="The persona of every task.  [default: that of the task in the reference's README, of a service the sample's]",
)
@click.option(
    "--text-prompt-of",
    type=(click.Choice(TASKS), str),
    multiple=True,
    metavar="TASK TEXT",
    help=f"The persona of one task, of {', '.join(TASKS)}; can be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), help="The seed of every task.  [default: the reference README's]")
@click.option(
    "--seed-of",
    type=(click.Choice(TASKS), click.IntRange(min=0)),
    multiple=True,
    metavar="TASK SEED",
    help="The seed of one task; can be repeated.",
)
@sampling_options
@threads_option()
@device_option()
@json_option()
def run(
    bundle: Path,
    data: Path,
    out: Path,
    slots: int,
    voice: str | None,
    text_prompt: str | None,
    text_prompt_of: tuple[tuple[str, str], ...],
    seed: int | None,
    seed_of: tuple[tuple[str, int], ...],
    sampling: Sampling,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Answer all samples in DATA with BUNDLE.

    DATA holds Full-Duplex-Bench, version 1.0 or 1.5, one of its folders, ServiceDuplexBench, or any recordings. --out gets
    TASK/ID/output.wav (16 kHz, as long as the input), agent_text.json, and what the score needs. A recording that cannot be
    read is listed at the end.
    """
    from pplex.cli.progress import frames_bar
    from pplex.fdb.batch import PERSONAS, SEED, RunSettings, run_benchmark
    from pplex.fdb.layout import Task
    from pplex.runtime.bundle import open_bundle
    from pplex.runtime.offline import OfflineSettings

    def of_tasks(usual: Mapping[Task, Any], given: Any, of: tuple[tuple[str, Any], ...]) -> dict[Task, Any]:
        named = {list(PERSONAS)[TASKS.index(name)]: value for name, value in of}
        return {task: named.get(task, value if given is None else given) for task, value in usual.items()}

    opened = open_bundle(bundle, verify=False)
    personas = PERSONAS if opened.config.takes_prompt else dict.fromkeys(PERSONAS, "")
    settings = RunSettings(
        OfflineSettings(voice=chosen_voice(opened, voice), sampling=sampling, slots=slots),
        personas=of_tasks(personas, text_prompt, text_prompt_of),
        seeds=of_tasks(dict.fromkeys(PERSONAS, SEED), seed, seed_of),
    )
    click.echo(f"Reading the recordings in {data}", err=True)
    try:
        report = run_benchmark(bundle, data, out, settings, threads, device, frames_bar)
    except KeyboardInterrupt:
        click.echo(f"\nComplete answers are in {out}. To go on, give the same command again.", err=True)
        raise
    echo_report(report, as_json)
    if report.failures:
        raise SystemExit(1)
