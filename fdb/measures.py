"""The measures of Full-Duplex-Bench 1.0, from words and stretches of speech. Called by `fdb.score`.

The definitions are those of arXiv 2503.04721 and of the benchmark's own evaluation. Its commit 1d40caa (2026-02-22) changed
two of them; `Backchannels` has both. docs/benchmark.md explains them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pplex.fdb.words import Word
from pplex.runtime.arrays import Floats

Segment = tuple[float, float]  # start and end of speech in seconds

TURN_S, TURN_WORDS = 1.0, 3  # an answer of at least so many seconds, or of more words, is a turn
LONG_TURN_S, BACKCHANNEL_WORDS = 3.0, 2  # of one stretch of speech: longer is a turn; so are more words
BIN_S, LEAST_COUNT = 0.2, 1e-10  # of the histogram of backchannels
NOTHING_IN_COMMON = 1.0  # the distance without any backchannel. Other distances are at most sqrt(ln 2) = 0.833


@dataclass(frozen=True)
class Mean:
    """A mean over `count` samples with its standard error. Without samples there is no mean, with one no error."""

    value: float | None
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
        return cls(float(np.mean(values)) if count else None, error, count)


def takes_over(words: Sequence[Word]) -> bool:
    """Whether the words are a turn: by their number, or by the time from the first one's start to the last one's end."""
    return bool(words) and (words[-1].end_s - words[0].start_s >= TURN_S or len(words) > TURN_WORDS)


def latency(words: Sequence[Word], since_s: float) -> float:
    """Seconds from the end of the user's turn to the first word; 0 if the agent spoke earlier."""
    return max(0.0, words[0].start_s - since_s)


@dataclass(frozen=True)
class Backchannels:
    """What an agent says while the user tells something: `segments` of speech, one after another.

    The search ends at the first segment of more than LONG_TURN_S. Each segment before it is a turn or a backchannel.

              okay     I would take the morning train    yes     Well, I think that is a very good question
        -----[====]---[=============================]---[===]---[==========================================]---
              heard    heard, a turn                     heard   the search ends, and the agent has taken over
    """

    segments: tuple[Segment, ...]
    words: tuple[Word, ...]

    @cached_property
    def heard(self) -> tuple[Segment, ...]:
        """The segments before the end of the search. Since commit 1d40caa, frequency and JSD count all of them."""
        end = next((i for i, (start, stop) in enumerate(self.segments) if stop - start > LONG_TURN_S), None)
        return self.segments[:end]

    @cached_property
    def since_last_turn(self) -> tuple[Segment, ...]:
        """The backchannels after the last turn before the end of the search: what was counted before commit 1d40caa."""
        last = max((i for i, segment in enumerate(self.heard) if self._is_turn(segment)), default=-1)
        return self.heard[last + 1 :]

    @property
    def takes_over(self) -> bool:
        """Whether a long segment ended the search, or the last segment is a turn. Earlier short turns do not count."""
        return len(self.heard) < len(self.segments) or (bool(self.heard) and self._is_turn(self.heard[-1]))

    def _is_turn(self, segment: Segment) -> bool:
        start, end = segment
        said = sum(word.start_s <= end and (word.start_s >= start or word.end_s > start) for word in self.words)
        return end - start >= TURN_S or said > BACKCHANNEL_WORDS


def frequency(backchannels: Sequence[Segment], length_s: float) -> float:
    """Backchannels per second of the recording."""
    return len(backchannels) / length_s


def distance_from_people(backchannels: Sequence[Segment], length_s: float, people: Sequence[float]) -> float:
    """Jensen-Shannon distance of the backchannels' histogram from people's: 0 to 0.833, or 1 without any backchannel.

    A backchannel counts once in each bin that it touches. `people`: weights of equally long parts of the recording.
    """
    if not backchannels:
        return NOTHING_IN_COMMON
    counts = np.full(int(length_s / BIN_S) + 1, LEAST_COUNT)
    for start, end in backchannels:
        counts[int(start / BIN_S) : int(end / BIN_S) + 1] += 1
    stretched = np.interp(np.linspace(0, 1, len(counts)), np.linspace(0, 1, len(people)), people)
    return jensen_shannon_distance(counts, stretched)


def jensen_shannon_distance(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """The square root of the divergence in nats, of two histograms [bins] with positive sums."""
    a, b = (np.asarray(weights, np.float64) / np.sum(weights) for weights in (p, q))
    middle = (a + b) / 2
    return math.sqrt(max(0.0, (_relative_entropy(a, middle) + _relative_entropy(b, middle)) / 2))


def _relative_entropy(p: Floats, q: Floats) -> float:
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())
