"""The command that scores answers by Full-Duplex-Bench: fdb score. Called by `cli.fdb`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pplex.cli.command import command
from pplex.cli.options import echo_report, json_option, parse_limits, threads_option

if TYPE_CHECKING:
    from pplex.fdb.report import Limit
    from pplex.fdb.score import Score
    from pplex.fdb.scoring import Scoring
    from pplex.fdb.similarity import Similarity

FOLDER = click.Path(path_type=Path)
DEFAULT_MODELS = {"whisper": "tiny.en", "parakeet": "nemo-parakeet-tdt-0.6b-v2"}


@command(prints=True)
@click.argument("out", type=FOLDER)
@click.option(
    "--data", type=FOLDER, help="The benchmark's data.  [default: beside the answers, or where fdb run found it]"
)
@click.option("--repo", type=FOLDER, help="A checkout of the benchmark, for people's backchannels: JSD needs them.")
@click.option(
    "--words",
    type=click.Choice(["whisper", "parakeet", "agent"]),
    help="whisper, parakeet: by faster-whisper or by onnx-asr, written to output.json. agent: the model's own text stream.  "
    "[default: the output.json that is there]",
)
@click.option(
    "--words-model",
    help=f"The recogniser's model: a folder or a name.  [default: {', '.join(DEFAULT_MODELS.values())}]",
)
@click.option("--judge", help="Base URL of an OpenAI-compatible server that grades answers.")
@click.option("--judge-model", help="The model to ask there.")
@click.option("--judge-key", envvar="PPLEX_JUDGE_KEY", show_envvar=True, help="The judge's key, if it needs one.")
@click.option(
    "--similarity",
    type=click.Choice(["wavlm", "resemblyzer"]),
    help="Compare the agent's voice in answers to interruptions with the one that it should have. resemblyzer is only a "
    "smoke test.",
)
@click.option(
    "--similarity-model", type=FOLDER, help="For wavlm: the folder of the model, such as microsoft/wavlm-base-plus-sv."
)
@click.option(
    "--voice",
    type=FOLDER,
    help="A recording of the voice that the agent should have.  [default: the recording that fdb run had as its voice]",
)
@click.option("--reference", type=FOLDER, help="Answers of the float32 reference to the same samples, scored too.")
@click.option(
    "--compare", type=FOLDER, help="Answers of another engine to the same samples: tests whether both differ."
)
@click.option(
    "--at-least",
    multiple=True,
    callback=parse_limits("turn_taking_tor=0.9"),
    help="Exit with code 1 if a measure is lower, as NAME=LIMIT; can be repeated.",
)
@click.option(
    "--at-most",
    multiple=True,
    callback=parse_limits("pause_tor=0.7"),
    help="Exit with code 1 if a measure is higher, as NAME=LIMIT; can be repeated.",
)
@click.option(
    "--report", "report_folder", type=FOLDER, help="Folder for report.html, report.md, report.json and sounds."
)
@threads_option("Processor threads of the recogniser.  [default: all]")
@json_option()
def score(
    out: Path,
    data: Path | None,
    repo: Path | None,
    words: str | None,
    words_model: str | None,
    judge: str | None,
    judge_model: str | None,
    judge_key: str | None,
    similarity: str | None,
    similarity_model: Path | None,
    voice: Path | None,
    reference: Path | None,
    compare: Path | None,
    at_least: dict[str, float],
    at_most: dict[str, float],
    report_folder: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Score the answers in OUT by the benchmark's definitions: OUT/TASK/ID/output.wav and output.json.

    Exit code 1 if a limit is broken, or if a sample could not be scored. docs/benchmark.md explains the figures.
    """
    if (judge is None) != (judge_model is None):
        raise click.UsageError("A judge needs both --judge URL and --judge-model MODEL.")
    if words_model and words not in DEFAULT_MODELS:
        raise click.UsageError(f"--words-model is for --words {' or '.join(DEFAULT_MODELS)}.")
    if (similarity == "wavlm") != (similarity_model is not None):
        raise click.UsageError("--similarity wavlm and --similarity-model FOLDER go together.")
    if voice and not similarity:
        raise click.UsageError("--voice is for --similarity.")
    from pplex.fdb.output import RECORDINGS, ScoreReport
    from pplex.fdb.report import SIMILARITY, make_report
    from pplex.fdb.run_record import run_record
    from pplex.fdb.worst import worst
    from pplex.validate.output import check_folder, write_folder

    if report_folder:
        check_folder(report_folder)
    folders, run = _named(out, reference, compare), run_record(out)
    scoring = replace(
        _scoring(data or run.data, repo, words, words_model, judge, judge_model, judge_key, threads, folders),
        similarity=_similarity(similarity, similarity_model, voice or run.voice),
    )
    scores = {name: _score(folder, scoring) for name, folder in folders.items()}
    ours = scores.pop("")
    settings = {
        "words": words or "output.json as it was",
        "judge": judge_model or "none",
        "people": str(repo or "none"),
        **({SIMILARITY: scoring.similarity.name, "voice": str(voice or run.voice)} if scoring.similarity else {}),
    }
    settings |= run.settings
    limits = [*_as_limits(at_least, True), *_as_limits(at_most, False)]
    done = ScoreReport(make_report(ours, settings, scores, limits, threads), tuple(worst(ours)))
    if report_folder:
        write_folder(report_folder, done.files(), RECORDINGS)
    echo_report(done, as_json)
    if not done.report.passed:
        raise SystemExit(1)


def _named(out: Path, reference: Path | None, compare: Path | None) -> dict[str, Path]:
    """The folders to score, by their names in the report; "" is OUT."""
    folders = {"": out}
    if reference:
        folders["float32 reference"] = reference
    if compare:
        folders[str(compare)] = compare
    return folders


def _scoring(
    data: Path | None,
    repo: Path | None,
    words: str | None,
    words_model: str | None,
    judge: str | None,
    judge_model: str | None,
    judge_key: str | None,
    threads: int | None,
    folders: Mapping[str, Path],
) -> "Scoring":
    from pplex.fdb.agent_words import agent_words
    from pplex.fdb.judge import Judge
    from pplex.fdb.layout import samples
    from pplex.fdb.parakeet import ParakeetWords
    from pplex.fdb.people import read_people
    from pplex.fdb.scoring import Scoring, stored_words
    from pplex.fdb.whisper import WhisperWords

    recognisers = {"whisper": WhisperWords, "parakeet": ParakeetWords}
    found = [one for folder in folders.values() for one in samples(folder)]
    people = read_people(repo) if repo else None
    grader = Judge(judge, judge_model, judge_key) if judge and judge_model else None
    if words in recognisers:
        recogniser = recognisers[words](words_model or DEFAULT_MODELS[words], threads)
        recogniser.check(found)
        return Scoring(recogniser, data, people, grader)
    return Scoring(agent_words if words == "agent" else stored_words, data, people, grader)


def _similarity(kind: str | None, model: Path | None, voice: Path | None) -> "Similarity | None":
    """The comparison of voices, if it is asked for."""
    from pplex.fdb.similarity import Similarity
    from pplex.fdb.speakers import Resemblyzer, WavLM
    from pplex.runtime.errors import ConfigError

    if kind is None:
        return None
    if voice is None:
        raise ConfigError(
            "--similarity needs a recording of the voice that the agent should have: --voice FILE.\n"
            "For a voice of the bundle: pplex-export voices listen BUNDLE NAME --out voice.wav"
        )
    return Similarity(WavLM(model) if model else Resemblyzer(), voice)


def _score(folder: Path, scoring: "Scoring") -> "Score":
    from pplex.cli.progress import samples_bar
    from pplex.fdb.score import score

    with samples_bar("score") as progress:
        return score(folder, scoring, progress)


def _as_limits(given: Mapping[str, float], least: bool) -> "list[Limit]":
    from pplex.fdb.report import Limit

    return [Limit(name, value, least) for name, value in given.items()]
