"""Scores the samples of a folder, one by one. A sample that cannot be scored becomes a fault. Called by `cli.fdb`."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from pplex.fdb.layout import OUTPUT, WORDS, Sample, Task, samples
from pplex.fdb.measures import (
    NOTHING_IN_COMMON,
    Backchannels,
    Mean,
    Segment,
    distance_from_people,
    frequency,
    latency,
    takes_over,
)
from pplex.fdb.metrics import ANSWER, BEFORE, FREQUENCY, JSD, LATENCY, TOR
from pplex.fdb.record import RECORD
from pplex.fdb.segments import read_recording, rounded_segments
from pplex.fdb.words import Transcript, first_event, read_event, read_json, read_transcript
from pplex.runtime.errors import PplexError, SampleError
from pplex.runtime.files import is_file, is_folder

TURN_FILE, INTERRUPT_FILE, VERSION_1_5_FILE = "turn_taking.json", "interrupt.json", "metadata.json"
UNKNOWN_WORDS = "output.json of another program"
People = Mapping[str, tuple[float, ...]]  # by a sample's id: how people's backchannels are spread over it


class Grader(Protocol):
    """Grades an answer from 0 to 5, or raises SampleError."""

    def __call__(self, context: str, interruption: str, answer: str) -> float: ...


_Values = Iterator[tuple[str, float]]
WordSource = Callable[[Sample, float], Transcript]  # the words after a moment in seconds


def stored_words(sample: Sample, since_s: float) -> Transcript:
    """The words in the sample's output.json, all of them: the benchmark has cropped them already. Raises SampleError."""
    if not is_file(sample.folder / WORDS):
        raise SampleError(f"{WORDS} is missing: make it with --words whisper, or use --words agent")
    return read_transcript(sample.folder / WORDS)


@dataclass(frozen=True)
class Scoring:
    """How to score: the source of words, people's backchannels, a judge.

    `data`: the folder of the benchmark's data; None if its files are beside the answers.
    """

    words: WordSource = stored_words
    data: Path | None = None
    people: People | None = None
    judge: Grader | None = None

    def event_file(self, sample: Sample, name: str) -> Path:
        """The benchmark's file of a sample, beside the answer or in the data."""
        folders = (self.data, self.data.parent) if self.data else ()  # the data may be the folder of one task
        places = [sample.folder / name, *(folder / sample.name / name for folder in folders)]
        return next(filter(is_file, places), places[0])


@dataclass(frozen=True)
class SampleScore:
    """The values of one sample by measure; a measure that does not apply is absent. `fault`: why others are missing."""

    sample: Sample
    values: Mapping[str, float]
    words_by: str = ""
    text: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Score:
    """All samples of a folder. `left_out` counts samples by collection that have no measures here."""

    folder: Path
    samples: tuple[SampleScore, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def collections(self) -> dict[str, Task]:
        """The folders of tasks, by name."""
        return {one.sample.collection: one.sample.task for one in self.samples}

    @property
    def faults(self) -> list[tuple[str, str]]:
        """Samples, and what could not be read or measured."""
        return [(one.sample.name, one.fault) for one in self.samples if one.fault]

    @property
    def words_by(self) -> Counter[str]:
        """Who made the words, and of how many samples."""
        return Counter(one.words_by for one in self.samples if one.words_by)

    def values(self, collection: str, key: str) -> dict[str, float]:
        """A measure's values by sample, of those that have it."""
        of = (one for one in self.samples if one.sample.collection == collection)
        return {one.sample.name: one.values[key] for one in of if key in one.values}

    def mean(self, collection: str, key: str) -> Mean:
        """The mean of a measure over the samples that have it."""
        return Mean.of(list(self.values(collection, key).values()))


class RunRecord(NamedTuple):
    """What `fdb run` recorded beside its answers: its settings, and the folder of the data if that is still there."""

    settings: dict[str, Any]
    data: Path | None


def run_record(folder: Path) -> RunRecord:
    """The record in a folder of answers, or above the folder of one task; empty if another program made them."""
    try:
        found = read_json(next(filter(is_file, (folder / RECORD, folder.resolve().parent / RECORD)), folder / RECORD))
        settings, data = dict(found["settings"]), Path(found["notes"]["data"])
    except (SampleError, LookupError, TypeError, ValueError):
        return RunRecord({}, None)
    return RunRecord({f"run: {name}": value for name, value in settings.items()}, data if is_folder(data) else None)


def score(
    folder: Path, scoring: Scoring = Scoring(), progress: Callable[[int, int], None] = lambda i, n: None
) -> Score:
    """Score every sample below `folder`. `progress` gets the number of finished samples, and of all.

    Raises ConfigError if there are no samples.
    """
    found = samples(folder)
    kept = [one for one in found if not _is_left_out(one, scoring)]
    left_out = Counter(one.collection for one in found) - Counter(one.collection for one in kept)
    scores = []
    for i, sample in enumerate(kept):
        progress(i, len(kept))
        scores.append(_score(sample, scoring))
    progress(len(kept), len(kept))
    return Score(folder, tuple(scores), dict(left_out))


def _is_left_out(sample: Sample, scoring: Scoring) -> bool:
    """Whether it has no measures here: folders without a task, and version 1.5."""
    return sample.task is Task.UNKNOWN or is_file(scoring.event_file(sample, VERSION_1_5_FILE))


def _score(sample: Sample, scoring: Scoring) -> SampleScore:
    """The sample's values; those that were measured before a fault are kept."""
    values, heard = dict[str, float](), None
    try:
        since_s = _since(sample, scoring)
        heard = scoring.words(sample, since_s if sample.task is Task.INTERRUPTION else 0.0)
        values.update(_MEASURES[sample.task](sample, scoring, heard, since_s))
        fault = ""
    except PplexError as error:
        fault = " ".join(str(error).split())
    by, text = (heard.by or UNKNOWN_WORDS, heard.text) if heard else ("", "")
    return SampleScore(sample, values, by, text, fault)


def _since(sample: Sample, scoring: Scoring) -> float:
    """The end of the user's turn or interruption in seconds, after which the agent should speak; 0 for the other tasks."""
    name = {Task.TURN_TAKING: TURN_FILE, Task.INTERRUPTION: INTERRUPT_FILE}.get(sample.task)
    if name is None:
        return 0.0
    path = scoring.event_file(sample, name)
    if not is_file(path):
        raise SampleError(f"{name} is missing: copy it from the benchmark's data, or name that folder with --data")
    # turn_taking.json marks the stretch in which the agent should answer, interrupt.json the interruption.
    return read_event(path)[0 if sample.task is Task.TURN_TAKING else 1]


def _pause(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> _Values:
    yield TOR, float(takes_over(heard.words))


def _turn(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> _Values:
    """Takeover, and latency only with one."""
    over = takes_over(heard.words)
    yield TOR, float(over)
    if over:
        yield LATENCY, latency(heard.words, since_s)


def _interruption(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> _Values:
    """The same, and the judge's grade of what was said."""
    yield from _turn(sample, scoring, heard, since_s)
    if scoring.judge and takes_over(heard.words):
        asked = first_event(scoring.event_file(sample, INTERRUPT_FILE))
        yield ANSWER, scoring.judge(str(asked.get("context", "")), str(asked.get("interrupt", "")), heard.text)


def _backchannel(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> _Values:
    recording = read_recording(sample.folder / OUTPUT)
    found = Backchannels(rounded_segments(recording), heard.words)
    yield TOR, float(found.takes_over)
    for suffix, counted in (("", found.heard), (BEFORE, found.since_last_turn)):
        yield FREQUENCY + suffix, frequency(counted, recording.seconds)
    if scoring.people is not None:
        for suffix, counted in (("", found.heard), (BEFORE, found.since_last_turn)):
            yield JSD + suffix, _distance(counted, recording.seconds, sample.folder.name, scoring.people)


def _distance(segments: Sequence[Segment], length_s: float, number: str, people: People) -> float:
    if not segments:
        return NOTHING_IN_COMMON
    if number not in people:
        raise SampleError(f"people's distribution has no sample {number}, so its JSD is missing")
    return distance_from_people(segments, length_s, people[number])


_MEASURES: Mapping[Task, Callable[[Sample, Scoring, Transcript, float], _Values]] = MappingProxyType(
    {
        Task.PAUSE: _pause,
        Task.BACKCHANNEL: _backchannel,
        Task.TURN_TAKING: _turn,
        Task.INTERRUPTION: _interruption,
    }
)
