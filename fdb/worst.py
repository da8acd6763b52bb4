"""The samples on which an agent did worst, with both sides as a recording. Called by `fdb.report`."""

import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
import soundfile

from pplex.fdb.layout import INPUT, OUTPUT, OVERLAPS, Task
from pplex.fdb.metrics import ADHERENCE, ANSWER, LATENCY, RESPONSE, SHARE_OF, STOP, TOR
from pplex.fdb.rubrics import BEST
from pplex.fdb.score import SampleScore, Score
from pplex.fdb.segments import read_recording
from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import PplexError
from pplex.validate.speech.detector import VAD_RATE_HZ

FAILED = 100.0  # worse than any latency in seconds and any lost points
SLOW_S, BAD_GRADE = 1.0, 3.0


@dataclass(frozen=True)
class Worst:
    """A sample, what was bad, and a stereo WAV file: the user on the left, the agent on the right; None without audio."""

    score: SampleScore
    why: str
    wav: bytes | None


def worst(score: Score, count: int = 10) -> list[Worst]:
    """The worst samples, the tasks in turns."""
    by_task = [
        sorted(
            ((badness(one), one) for one in score.samples if one.sample.collection == name), key=lambda one: -one[0][0]
        )
        for name in score.collections
    ]
    turns = (one for one in chain.from_iterable(zip_longest(*by_task)) if one is not None and one[0][0] > 0)
    chosen = sorted(islice(turns, count), key=lambda one: -one[0][0])
    return [Worst(one, why, _wav(one)) for (_, why), one in chosen]


def badness(one: SampleScore) -> tuple[float, str]:
    """How bad a sample is, 0 if nothing is wrong, and why."""
    return max(_faults(one), default=(0.0, ""))


def _faults(one: SampleScore) -> Iterator[tuple[float, str]]:
    task, values = one.sample.task, one.values
    if task in (Task.PAUSE, Task.BACKCHANNEL) and values.get(TOR) == 1:
        yield FAILED, "took over while the user " + ("paused" if task is Task.PAUSE else "told something")
    if task in (Task.TURN_TAKING, Task.INTERRUPTION) and values.get(TOR) == 0:
        yield FAILED, "did not take over when the user had finished"
    if task is Task.OVERLAP_INTERRUPTION and values.get(STOP, 0.0) > SLOW_S:
        yield min(values[STOP], FAILED / 2), f"spoke on for {values[STOP]:.2f} s when it was interrupted"
    if task in OVERLAPS and values.get(SHARE_OF["RESPOND"]) == (task is not Task.OVERLAP_INTERRUPTION):
        yield FAILED, "did not answer the interruption" if task is Task.OVERLAP_INTERRUPTION else "answered the event"
    for key in (LATENCY, RESPONSE):
        if values.get(key, 0.0) > SLOW_S:
            yield min(values[key], FAILED / 2), f"answered after {values[key]:.2f} s"
    for key, what in ((ANSWER, ""), (ADHERENCE, " for task adherence")):
        if values.get(key, BEST) < BAD_GRADE:
            yield BEST - values[key], f"the judge gave {values[key]:g} of {BEST}{what}"


def _wav(one: SampleScore) -> bytes | None:
    sides = [_pcm(path) for path in (one.sample.file(INPUT), one.sample.folder / OUTPUT)]
    length = max(map(len, sides))
    if not length:
        return None
    both = np.stack([np.pad(side, (0, length - len(side))) for side in sides], axis=1)  # [samples, 2]
    file = io.BytesIO()
    soundfile.write(file, np.clip(both, -1, 1), VAD_RATE_HZ, "PCM_16", format="WAV")
    return file.getvalue()


def _pcm(path: Path) -> Pcm:
    """A side of the conversation [samples] at 16 kHz; [] if there is no such recording."""
    with suppress(PplexError):
        return read_recording(path).pcm
    return np.zeros(0, np.float32)


def named(found: Iterable[Worst]) -> dict[str, bytes]:
    """The recordings by their file names."""
    return {f"worst-{i:02}.wav": one.wav for i, one in enumerate(found, 1) if one.wav is not None}
