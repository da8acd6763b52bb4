"""Scores the samples of a folder, one by one. A sample that cannot be scored becomes a fault. Called by `cli.fdb`."""

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from pplex.fdb.layout import Sample, Task, samples, task_of
from pplex.fdb.measures import Mean
from pplex.fdb.metadata import task_with_metadata
from pplex.fdb.metrics import INTERVALS, TAILED
from pplex.fdb.overlap import without_tails
from pplex.fdb.run_record import unanswered
from pplex.fdb.scoring import Scoring
from pplex.fdb.tasks import MEASURES, since
from pplex.runtime.errors import PplexError

UNKNOWN_WORDS = "output.json of another program"
UNANSWERED = "fdb run was stopped before it answered this sample: give that command again"
_AS_IT_IS = Scoring()


@dataclass(frozen=True)
class SampleScore:
    """The values of one sample by measure; a measure that does not apply is absent. `fault`: why others are missing.

    `intervals`: the single values of measures that may have several; their mean is among the values.
    """

    sample: Sample
    values: Mapping[str, float]
    words_by: str = ""
    text: str = ""
    fault: str = ""
    intervals: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


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

    def count(self, collection: str) -> int:
        """The samples that were scored, at least in part."""
        return sum(one.sample.collection == collection and (bool(one.values) or not one.fault) for one in self.samples)

    def mean(self, collection: str, key: str) -> Mean:
        """The mean of a measure over the samples that have it, or over the intervals of all samples."""
        if key in INTERVALS:
            of = [one for one in self.samples if one.sample.collection == collection]
            return Mean.of([value for one in of for value in one.intervals.get(key, ())])
        values = list(self.values(collection, key).values())
        return Mean.of(without_tails(values) if key in TAILED else values)


def score(
    folder: Path, scoring: Scoring = _AS_IT_IS, progress: Callable[[int, int], None] = lambda i, n: None
) -> Score:
    """Score every sample below `folder`. `progress` gets the number of finished samples, and of all.

    Raises ConfigError if there are no samples.
    """
    found = samples(folder, scoring.data)
    missing = _missing(folder, scoring, {one.name for one in found})
    tasks = (replace(one, task=task_with_metadata(one)) for one in found)
    kept = [one for one in tasks if one.task is not Task.UNKNOWN]  # others have no measures here
    left_out = Counter(one.collection for one in found) - Counter(one.collection for one in kept)
    scores = []
    for i, sample in enumerate(kept):
        progress(i, len(kept))
        scores.append(_score(sample, scoring))
    progress(len(kept), len(kept))
    return Score(folder, (*scores, *missing), dict(left_out))


def _missing(folder: Path, scoring: Scoring, there: Set[str]) -> list[SampleScore]:
    """A fault for each sample of a stopped run that has no folder yet."""
    names = [name for name in unanswered(folder) if name not in there]
    absent = (Sample(folder / name, name, task_of(Path(name)), scoring.data) for name in names)
    found = [replace(one, task=task_with_metadata(one)) for one in absent]
    return [SampleScore(one, {}, fault=UNANSWERED) for one in found if one.task is not Task.UNKNOWN]


def _score(sample: Sample, scoring: Scoring) -> SampleScore:
    """The sample's values; those that were measured before a fault are kept."""
    found, heard = dict[str, float | tuple[float, ...]](), None
    try:
        since_s = since(sample)
        heard = scoring.words(sample, since_s if sample.task is Task.INTERRUPTION else 0.0)
        found.update(MEASURES[sample.task](sample, scoring, heard, since_s))
        fault = ""
    except PplexError as error:
        fault = " ".join(str(error).split())
    by, text = (heard.by or UNKNOWN_WORDS, heard.text) if heard else ("", "")
    intervals = {key: value for key, value in found.items() if isinstance(value, tuple)}
    means = {key: sum(value) / len(value) for key, value in intervals.items() if value}
    values = {key: value for key, value in found.items() if not isinstance(value, tuple)}
    return SampleScore(sample, {**means, **values}, by, text, fault, intervals)
