"""Four scenarios with planted events for the user's speech, from recordings or synthetic speech.

Called by `validate.recording`, `validate.sections.conversation` and `validate.validation`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import FORMATS, read_audio
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import ReportError
from pplex.runtime.files import files_below
from pplex.validate.speech.spoken import spoken
from pplex.validate.speech.turns import INTERRUPTED, INTERRUPTION, LONG_TURN, PAUSE, TURN_END, Event, Segment

LEAD_S = 0.5
RECORDINGS = 16  # files that are read, spread over a folder
MARGIN_S = 0.05  # around a piece: its first and last sounds may be too soft for the detector
SYNTHETIC, RECORDED = "synthetic speech", "recordings"


@dataclass(frozen=True)
class Scenario:
    """The user's side of a conversation: pcm [samples] at 24 kHz, its segments of speech, and its events."""

    name: str
    material: str
    pcm: Pcm
    speech: tuple[Segment, ...]
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Piece:
    """A stretch of pcm [samples] in which speech lasts from start_s to end_s."""

    pcm: Pcm
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Speech:
    """A source of speech for scenarios: `say` gives a piece of about the requested seconds."""

    material: str
    say: Callable[[float], Piece]


def make_scenarios(speech: Speech, scale: float = 1.0) -> tuple[Scenario, ...]:
    """The four scenarios, with every duration multiplied by `scale`."""
    return tuple(
        scenario(Timeline(speech, scale)) for scenario in (_turn_taking, _pause_handling, _backchannel, _interruption)
    )


def _turn_taking(line: "Timeline") -> Scenario:
    turn = line.wait(LEAD_S).say(3.0)
    line.wait(4.0)
    return line.scenario("turn taking", Event(TURN_END, turn[1], line.now_s))


def _pause_handling(line: "Timeline") -> Scenario:
    begun = line.wait(LEAD_S).say(2.0)
    continued = line.wait(1.2).say(2.0)
    line.wait(4.0)
    return line.scenario(
        "pause handling", Event(PAUSE, begun[1], continued[0]), Event(TURN_END, continued[1], line.now_s)
    )


def _backchannel(line: "Timeline") -> Scenario:
    turn = line.wait(LEAD_S).say(10.0)
    line.wait(3.0)
    return line.scenario("backchannel", Event(LONG_TURN, *turn), Event(TURN_END, turn[1], line.now_s))


def _interruption(line: "Timeline") -> Scenario:
    question = line.wait(LEAD_S).say(3.0)
    interruption = line.wait(3.0).say(2.0)
    line.wait(4.0)
    return line.scenario(
        "interruption",
        Event(TURN_END, question[1], interruption[0]),
        Event(INTERRUPTION, *interruption),
        Event(INTERRUPTED, interruption[1], line.now_s),
    )


class Timeline:
    """A scenario under construction."""

    def __init__(self, speech: Speech, scale: float):
        self._speech, self._scale = speech, scale
        self._pcm: list[Pcm] = []
        self._spoken: list[Segment] = []

    @property
    def now_s(self) -> float:
        return sum(map(len, self._pcm)) / SAMPLE_RATE_HZ

    def wait(self, seconds: float) -> "Timeline":
        self._pcm.append(np.zeros(round(self._scale * seconds * SAMPLE_RATE_HZ), np.float32))
        return self

    def say(self, seconds: float) -> Segment:
        """Add speech; returns its start and end in seconds."""
        now_s, piece = self.now_s, self._speech.say(self._scale * seconds)
        self._pcm.append(piece.pcm)
        self._spoken.append((now_s + piece.start_s, now_s + piece.end_s))
        return self._spoken[-1]

    def scenario(self, name: str, *events: Event) -> Scenario:
        return Scenario(name, self._speech.material, np.concatenate(self._pcm), tuple(self._spoken), events)


def synthetic_speech(seed: int = 0) -> Speech:
    """Different babble each time, of exactly the requested length."""
    seeds = count(seed)
    return Speech(SYNTHETIC, lambda seconds: Piece(spoken(seconds, next(seeds)), 0.0, seconds))


def recorded_speech(folder: Path, detect: Callable[[Pcm], list[Segment]]) -> Speech:
    """Stretches of speech from up to RECORDINGS files in `folder`, in order; after the last, it starts again.

    A piece has as many stretches as the requested length needs. Raises ReportError if it finds no speech, AudioError for an
    unreadable recording.
    """
    found = [path for path in files_below(folder) if path.suffix.lower() in FORMATS]
    paths = [found[i] for i in np.linspace(0, len(found) - 1, min(len(found), RECORDINGS)).astype(int)]
    stretches = [piece for path in paths for piece in _cut(read_audio(path), detect)]
    if not stretches:
        raise ReportError(
            f"No speech found: {folder} does not exist, or its {len(paths)} recordings ({', '.join(FORMATS)}) have none. "
            "Name a folder of speech, or leave --wavs out for synthetic speech."
        )
    ahead = cycle(stretches)
    return Speech(RECORDED, lambda seconds: _of_at_least(seconds, ahead))


def _cut(pcm: Pcm, detect: Callable[[Pcm], list[Segment]]) -> Iterable[Piece]:
    for start_s, end_s in detect(pcm):
        first = max(0, round((start_s - MARGIN_S) * SAMPLE_RATE_HZ))
        cut = pcm[first : round((end_s + MARGIN_S) * SAMPLE_RATE_HZ)]
        begins_s = start_s - first / SAMPLE_RATE_HZ
        yield Piece(cut, begins_s, begins_s + end_s - start_s)


def _of_at_least(seconds: float, stretches: Iterable[Piece]) -> Piece:
    """The next stretches joined to one piece."""
    taken, length_s = list[Piece](), 0.0
    for stretch in stretches:
        before_s, length_s = length_s, length_s + len(stretch.pcm) / SAMPLE_RATE_HZ
        taken.append(stretch)
        if length_s >= seconds:
            break
    return Piece(np.concatenate([piece.pcm for piece in taken]), taken[0].start_s, before_s + taken[-1].end_s)
