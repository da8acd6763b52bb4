"""The measures of Full-Duplex-Bench 1.5: somebody speaks while the agent does. Called by `fdb.tasks`.

Definitions of arXiv 2507.23159 and of the benchmark's get_timing.py and eval_general_before_after.py.

    user    ---[== question ==]-------------[= event =]---------------------
    agent   ---------------------[== answer =====]--------[== goes on ==]---
                              |<->|         |<-->|    |<->|
                           response          stop    response
"""

from collections.abc import Sequence

import numpy as np

from pplex.fdb.measures import Segment
from pplex.fdb.words import Word

USER_PAUSE_S, AGENT_PAUSE_S = 0.6, 0.5  # shorter pauses do not end a stretch of speech
TAILS = 5  # percent of the rates at each end that do not count
LEAST_FOR_TAILS = 3


def merged(segments: Sequence[Segment], pause_s: float) -> list[Segment]:
    """Stretches of speech, joined where the pause between them is at most `pause_s`."""
    found = list[Segment]()
    for start, end in sorted(segments):
        if found and start - found[-1][1] <= pause_s:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def stops(user: Sequence[Segment], agent: Sequence[Segment]) -> list[Segment]:
    """Where both speak, in order. Of those that end in the same millisecond, the shortest."""
    both, i, j = dict[int, Segment](), 0, 0
    while i < len(user) and j < len(agent):
        start, end = max(user[i][0], agent[j][0]), min(user[i][1], agent[j][1])
        before = both.get(_ms(end))
        if end > start and (before is None or end - start < before[1] - before[0]):
            both[_ms(end)] = start, end
        if user[i][1] < agent[j][1]:
            i += 1
        else:
            j += 1
    return sorted(both.values(), key=lambda one: one[1])


def responses(user: Sequence[Segment], agent: Sequence[Segment]) -> list[Segment]:
    """From the last end of the user before an agent's start to this start, in order."""
    gaps = dict[int, Segment]()
    for _, end in user:
        start = next((start for start, _ in agent if start > end), None)
        if start is not None and (_ms(start) not in gaps or end > gaps[_ms(start)][0]):
            gaps[_ms(start)] = end, start
    return sorted(gaps.values(), key=lambda one: one[1])


def lengths(intervals: Sequence[Segment]) -> tuple[float, ...]:
    """Seconds, from times that are rounded to 1 ms, as in the benchmark."""
    return tuple(round(end, 3) - round(start, 3) for start, end in intervals)


def split_at(words: Sequence[Word], event_end_s: float) -> float:
    """The start of the first word that ends after the event, or the end of the last word; without words the event's end."""
    in_order = sorted(words, key=lambda word: word.start_s)
    later = (word.start_s for word in in_order if event_end_s < max(word.start_s, word.end_s))
    return next(later, in_order[-1].end_s if in_order else event_end_s)


def rates(words: Sequence[Word], event_end_s: float, length_s: float) -> tuple[float | None, float | None]:
    """Words per minute before and after the split; None for a side of the recording that is empty."""
    split_s = max(0.0, min(length_s, split_at(words, event_end_s)))
    before = [word for word in words if word.end_s <= split_s]
    after = [word for word in words if word.end_s > split_s]
    return rate(before) if split_s > 0 else None, rate(after) if split_s < length_s else None


def rate(words: Sequence[Word]) -> float:
    """Words per minute, from the first one's start to the last one's end; 0 without words, or without time."""
    spoken_s = words[-1].end_s - words[0].start_s if words else 0.0
    return 60 * len(words) / spoken_s if spoken_s > 0 else 0.0


def without_tails(values: Sequence[float]) -> list[float]:
    """The values from the 5th to the 95th percentile: the benchmark's means of rates leave out the others."""
    if len(values) < LEAST_FOR_TAILS:
        return list(values)
    low, high = np.percentile(values, [TAILS, 100 - TAILS])
    return [value for value in values if low <= value <= high]


def _ms(time_s: float) -> int:
    return round(time_s * 1000)
