"""Metrics of turn-taking: rates and latencies from segments of speech and the user's events.

The terms are those of Full-Duplex-Bench (arXiv 2503.04721). Its definitions (`fdb.measures`) use the words from speech
recognition to distinguish turns from backchannels ("mm-hm"). Here the length of a stretch of speech decides, so validation
needs no such model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from pplex.runtime.arrays import Floats

Segment = tuple[float, float]  # start and end of speech in seconds

TURN_S = 1.0  # longer speech is a turn, shorter speech a backchannel
JOIN_S = 0.5  # shorter gaps are breaths within a stretch of speech
WINDOW_S = 0.2  # of the distribution of backchannels over time

TURN_END = "turn end"  # the user has finished: the agent should take over
PAUSE = "pause"  # the user hesitates: the agent should not
LONG_TURN = "long turn"  # the user tells something: backchannels are welcome, turns are not
INTERRUPTION = "interruption"  # the user speaks while the agent speaks: the agent should stop
INTERRUPTED = "interrupted"  # the user has finished interrupting: the agent should take over


@dataclass(frozen=True)
class Event:
    """A stretch of the user's audio to which the agent should react; `kind` is one of the above.

    A turn end or the end of an interruption lasts until the user speaks again or the recording ends.
    """

    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Dialogue:
    """Speech of user and agent in order, and the user's events."""

    user: Sequence[Segment]
    agent: Sequence[Segment]
    events: Sequence[Event]


Values = Mapping[str, tuple[float, ...]]  # by metric, one number for each event with a value

# For each kind of event, the metric of its takeover rate and that of its latency, if any.
TAKEOVERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        TURN_END: ("takeover_rate", "latency_s"),
        PAUSE: ("pause_takeover_rate", ""),
        LONG_TURN: ("long_turn_takeover_rate", ""),
        INTERRUPTED: ("interruption_takeover_rate", "interruption_latency_s"),
    }
)
METRICS = (
    *(metric for pair in TAKEOVERS.values() for metric in pair if metric),
    "stop_latency_s",
    "backchannel_frequency",
    "overlap_s",
)


def measure_turns(dialogues: Iterable[Dialogue]) -> Values:
    """Every metric of METRICS, with one value for each event (overlap: for each dialogue). A rate is their mean.

    A takeover counts 1, no takeover 0. Only takeovers have a latency; it is 0 if the agent already spoke. The stop latency
    of an interruption is the time from the user's onset to the end of the agent's speech, if the agent was speaking.
    """
    values: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for dialogue in dialogues:
        stretches = joined(dialogue.agent)
        for event in dialogue.events:
            for metric, value in _of_event(event, stretches):
                values[metric].append(value)
        values["overlap_s"].append(overlap(dialogue.user, dialogue.agent))
    return {metric: tuple(found) for metric, found in values.items()}


def joined(segments: Iterable[Segment], gap_s: float = JOIN_S) -> list[Segment]:
    """The segments in order; those less than `gap_s` apart are joined."""
    stretches: list[Segment] = []
    for start, end in segments:
        if stretches and start - stretches[-1][1] < gap_s:
            stretches[-1] = (stretches[-1][0], max(end, stretches[-1][1]))
        else:
            stretches.append((start, end))
    return stretches


def overlap(a: Iterable[Segment], b: Sequence[Segment]) -> float:
    """Seconds during which both speak."""
    return sum(max(0.0, min(end, other_end) - max(start, other)) for start, end in a for other, other_end in b)


def _of_event(event: Event, stretches: Sequence[Segment]) -> Iterable[tuple[str, float]]:
    """Metrics and values of an event."""
    if event.kind in TAKEOVERS:
        rate, latency = TAKEOVERS[event.kind]
        onset_s = takeover(event, stretches)
        yield rate, float(onset_s is not None)
        if latency and onset_s is not None:
            yield latency, onset_s
    if event.kind == LONG_TURN:
        yield "backchannel_frequency", len(backchannels(event, stretches)) / (event.end_s - event.start_s)
    if event.kind == INTERRUPTION:
        yield from (("stop_latency_s", end - event.start_s) for start, end in stretches if start <= event.start_s < end)


def takeover(event: Event, stretches: Iterable[Segment]) -> float | None:
    """Seconds from the event's start to the agent's first turn in it; 0 if the turn started earlier; None without a turn.

    Speech that starts in the event counts with its whole length. In the user's long turn, only the part within the event
    counts: an agent that answers the last word has not interrupted the user.
    """
    for start, end in stretches:
        onset, last = max(start, event.start_s), min(end, event.end_s) if event.kind == LONG_TURN else end
        if onset < event.end_s and last - onset >= TURN_S:
            return onset - event.start_s
    return None


def backchannels(event: Event, stretches: Iterable[Segment]) -> list[Segment]:
    """The agent's speech in the event that is too short for a turn."""
    return [(start, end) for start, end in stretches if event.start_s <= start < event.end_s and end - start < TURN_S]


def backchannel_profile(dialogues: Iterable[Dialogue]) -> Floats:
    """Seconds of backchannels in each window from the start of a long turn of the user, summed over all dialogues.

    Not onsets: a difference of a few milliseconds could move an onset to the next window.
    """
    events = [(event, joined(d.agent)) for d in dialogues for event in d.events if event.kind == LONG_TURN]
    longest_s = max((event.end_s - event.start_s for event, _ in events), default=0.0)
    edges = WINDOW_S * np.arange(np.ceil(longest_s / WINDOW_S) + 1)
    profile = np.zeros(len(edges) - 1)
    for event, stretches in events:
        for start, end in backchannels(event, stretches):
            reached = np.clip(np.array([start, end])[:, None] - event.start_s, edges[:-1], edges[1:])  # [2, windows]
            profile += reached[1] - reached[0]
    return profile


def divergence(p: Floats, q: Floats) -> float | None:
    """Jensen-Shannon divergence of two profiles [windows] in bits: 0 for the same shape, 1 without overlap.

    It is not the distance, which is the square root. It is 1, the maximum, if one profile is empty, and None if both are.
    """
    if not p.any() and not q.any():
        return None
    if not p.any() or not q.any():
        return 1.0
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _relative_entropy(p: Floats, q: Floats) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())
