"""The report of scores: a table of all tasks with others' figures, and the measures of each task. Called by `cli.fdb`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pplex.fdb.comparison import TESTS, paired
from pplex.fdb.layout import OVERLAPS, Task
from pplex.fdb.measures import Mean
from pplex.fdb.metrics import (
    ADHERENCE,
    ANSWER,
    INTERVALS,
    JSD,
    LABELS,
    METRICS,
    NATURALNESS,
    QUESTIONS,
    SHARE_OF,
    SHORT,
    SSIM,
    Metric,
    limit_names,
)
from pplex.fdb.published import DISAGREEMENT, PUBLISHED
from pplex.fdb.score import Score
from pplex.measure.machine import machine
from pplex.runtime.errors import ConfigError
from pplex.validate.report.schema import Measure, Report, Section, Table, Tolerance

PACKAGES = ("numpy", "silero-vad", "onnxruntime", "faster-whisper", "onnx-asr", "transformers")
OURS = "ours"
NOT_HERE = "-"
BY_JUDGE = (ANSWER, ADHERENCE, NATURALNESS, *SHARE_OF.values())
BY_GRADES = (Task.INTERRUPTION, Task.SERVICE, *OVERLAPS)
BENCHMARKS = {
    "Full-Duplex-Bench 1.0": (Task.PAUSE, Task.BACKCHANNEL, Task.TURN_TAKING, Task.INTERRUPTION),
    "Full-Duplex-Bench 1.5": OVERLAPS,
    "ServiceDuplexBench": (Task.SERVICE,),
}
SIMILARITY = "similarity"  # the setting with the model that compares voices
OF_OVERLAPS = (
    "Of version 1.5, both latencies are means over all intervals of all samples, of which the brackets have the number. "
    "The rates of words leave out the largest and smallest 5 %. Nothing of version 1.5 was published for PersonaPlex."
)
SAME_MODEL = "Figures of another model do not compare; the published one seems to be of WavLM-Large with ECAPA."


@dataclass(frozen=True)
class Limit:
    """The allowed values of a measure, such as pause_tor of all folders of pauses."""

    name: str
    limit: float
    least: bool

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(self.limit, f"--at-{'least' if self.least else 'most'}", self.least)


def make_report(
    score: Score,
    settings: Mapping[str, Any],
    others: Mapping[str, Score],
    limits: Iterable[Limit] = (),
    threads: int | None = None,
) -> Report:
    """The report of a score beside `others` by name. Raises ConfigError for a limit of a measure that is not there."""
    held = {limit.name: limit for limit in limits}
    _check(held, score)
    return Report(
        f"pplex-export {version('pplex-export')}",
        {"name": str(score.folder), "samples": len(score.samples), "words": _words(score)},
        {"name": "what was published for PersonaPlex", "by": [one.name for one in PUBLISHED]},
        settings,
        machine(threads, *PACKAGES),
        (
            _results(score, others, str(settings.get(SIMILARITY) or "")),
            *_faults(score),
            *(_compared(name, score, other) for name, other in others.items()),
            *(_task(name, score, held) for name in score.collections),
        ),
    )


def _results(score: Score, others: Mapping[str, Score], compared: str) -> Section:
    question = "How does the agent do on each task?"
    return Section("results", "Results", question, (), tuple(overviews(score, others)), (), _notes(score, compared))


def overviews(score: Score, others: Mapping[str, Score]) -> Iterator[Table]:
    """A table for each benchmark of which there are samples."""
    for title, tasks in BENCHMARKS.items():
        names = [name for name, task in score.collections.items() if task in tasks]
        if names:
            yield _overview(title, names, score, others)


def _overview(title: str, names: Iterable[str], score: Score, others: Mapping[str, Score]) -> Table:
    """A row for each task, and below it those of others: means with their standard errors."""
    scores = {OURS: score, **others}
    keys = [key for key in LABELS if any(one.mean(name, key).count for one in scores.values() for name in names)]
    rows = list[tuple[str | float | int | None, ...]]()
    for name in names:
        for whose, one in scores.items():
            samples = one.count(name)
            rows.append((name, whose, samples, *(_cell(one.mean(name, key), key, samples) for key in keys)))
        for published in PUBLISHED:
            values = published.of(name, score.collections[name])
            if values:
                rows.append((name, published.name, None, *(_figure(values.get(key)) for key in keys)))
    return Table(title, ("task", "whose", "samples", *(LABELS[key] for key in keys)), tuple(rows))


def _cell(mean: Mean, key: str, samples: int) -> str:
    """Such as: 0.667 ± 0.333 (of 12), if only 12 samples have a value. Intervals are always counted."""
    if mean.value is None:
        return NOT_HERE
    error = "" if mean.error is None else f" ± {mean.error:.3f}"
    return f"{mean.value:.3f}{error}{'' if mean.count == samples and key not in INTERVALS else f' (of {mean.count})'}"


def _figure(value: float | None) -> str:
    return NOT_HERE if value is None else f"{value:.3f}"


def _task(name: str, score: Score, held: Mapping[str, Limit]) -> Section:
    task = score.collections[name]
    measures = [_measure(name, metric, score, held) for metric in METRICS[task] if _is_measured(name, metric, score)]
    rows = [
        (one.sample.folder.name, *(one.values.get(metric.key) for metric in METRICS[task]), one.text, one.words_by)
        for one in score.samples
        if one.sample.collection == name
    ]
    columns = ("sample", *(LABELS[metric.key] for metric in METRICS[task]), "the agent's words", "words by")
    return Section(name, name, QUESTIONS[task], tuple(measures), (Table("Samples", columns, tuple(rows)),))


def _is_measured(name: str, metric: Metric, score: Score) -> bool:
    """JSD, verdicts and voices are left out without people's distributions, a judge and a comparison of voices."""
    return not metric.key.startswith((JSD, *BY_JUDGE, SSIM)) or bool(score.values(name, metric.key))


def _measure(name: str, metric: Metric, score: Score, held: Mapping[str, Limit]) -> Measure:
    mean = score.mean(name, metric.key)
    error = "" if mean.error is None else f", standard error {mean.error:.3f}"
    unit = "interval" if metric.key in INTERVALS else "sample"
    what = f"{metric.meaning} Of {mean.count} {unit}{'' if mean.count == 1 else 's'}{error}."
    limit = held.get(f"{SHORT[score.collections[name]]}_{metric.key}")
    return Measure(f"{name}.{metric.key}", mean.value, metric.unit, what, limit.tolerance if limit else None)


def _compared(name: str, score: Score, other: Score) -> Section:
    rows = tuple(
        (f"{one.collection}.{one.metric.key}", one.count, one.first, one.second, one.first - one.second, one.p)
        for one in paired(score, other)
    )
    columns = ("measure", "samples of both", OURS, name, "difference", "p")
    notes = (
        f"Only samples that both have count. p is of {TESTS}: how often chance alone would give such a difference.",
        "With two equal agents, one p in twenty is below 0.05.",
    )
    table = Table(f"Ours and {name}", columns, rows)
    question = "Do they differ on the same samples?"
    return Section(f"compared-{name}", f"Compared with {name}", question, (), (table,), (), notes)


def _faults(score: Score) -> Iterator[Section]:
    if score.faults:
        table = Table("Not scored, or not completely", ("sample", "why"), tuple(score.faults))
        every = Tolerance(0, "the published figures are of all samples")
        unscored = Measure("unscored", len(score.faults), "samples", "Samples without a figure, or without all.", every)
        yield Section("faults", "Not scored", "Which samples could not be scored?", (unscored,), (table,))


def _notes(score: Score, compared: str) -> tuple[str, ...]:
    tasks = {*score.collections.values()}
    return (
        f"Words: {_words(score)}.",
        "Figures are means ± one standard error. Of TOR at pauses and backchannels, latency and JSD, less is better.",
        *(DISAGREEMENT if tasks & {*BENCHMARKS["Full-Duplex-Bench 1.0"]} else ()),
        *((OF_OVERLAPS,) if tasks & {*OVERLAPS} else ()),
        *((f"SSIM: by {compared}. {SAME_MODEL}",) if compared else ()),
        *_missing(score),
    )


def _missing(score: Score) -> Iterator[str]:
    shorts = {SHORT[task] for task in score.collections.values()}
    keys = {key for one in score.samples for key in one.values}
    if "backchannel" in shorts and JSD not in keys:
        yield "JSD is missing: it needs people's backchannels, which a checkout of the benchmark has (--repo)."
    if {*score.collections.values()} & {*BY_GRADES} and not keys & {*BY_JUDGE}:
        yield "Answers to interruptions and services have no grades, and overlaps no classes: these need a judge (--judge)."
    if "interruption" in shorts and SSIM not in keys:
        yield "The similarity of voices (SSIM) is not measured (--similarity). The model card gives 0.650, by WavLM."
    if score.left_out:
        count = ", ".join(f"{name} ({number})" for name, number in score.left_out.items())
        yield f"Left out, because they have no measures here (other folders, or metadata.json without known keys): {count}."


def _words(score: Score) -> str:
    found = score.words_by
    return ", ".join(f"{by} ({number})" if len(found) > 1 else by for by, number in found.items()) or "none"


def _check(held: Mapping[str, Limit], score: Score) -> None:
    """Raise ConfigError for limits that would hold for nothing."""
    there = {f"{SHORT[task]}_{metric.key}" for task in score.collections.values() for metric in METRICS[task]}
    if wrong := [name for name in held if name not in there]:
        known = [name for name in limit_names() if name in there]
        raise ConfigError(
            f"{', '.join(wrong)} cannot have a limit: {score.folder} has no such measure.\nMeasures here: {', '.join(known)}"
        )
