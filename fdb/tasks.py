"""The measures of each task, from a sample's files and words. Called by `fdb.score`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pplex.fdb.layout import CLEAN_INPUT, CLEAN_OUTPUT, INPUT, OUTPUT, OVERLAPS, Sample, Task
from pplex.fdb.measures import (
    NOTHING_IN_COMMON,
    Backchannels,
    Segment,
    distance_from_people,
    frequency,
    latency,
    takes_over,
)
from pplex.fdb.metadata import METADATA, read_overlap, read_service
from pplex.fdb.metrics import (
    ADHERENCE,
    ANSWER,
    BEFORE,
    FREQUENCY,
    JSD,
    LATENCY,
    NATURALNESS,
    RATE_AFTER,
    RATE_BEFORE,
    RESPONSE,
    SHARE_OF,
    SSIM,
    STOP,
    TOR,
)
from pplex.fdb.overlap import AGENT_PAUSE_S, USER_PAUSE_S, lengths, merged, rates, responses, stops
from pplex.fdb.rubrics import BEHAVIOUR, BEHAVIOURS, INTERRUPTION, SERVICE
from pplex.fdb.scoring import People, Scoring
from pplex.fdb.segments import read_recording, rounded_segments, segments_s
from pplex.fdb.words import Transcript, first_event, read_event
from pplex.runtime.errors import SampleError
from pplex.runtime.files import is_file

TURN_FILE, INTERRUPT_FILE = "turn_taking.json", "interrupt.json"
Values = Iterator[tuple[str, float | tuple[float, ...]]]  # by measure: one value, or those of several intervals


def since(sample: Sample) -> float:
    """The end of the user's turn or interruption in seconds, after which the agent should speak; 0 for the other tasks."""
    name = {Task.TURN_TAKING: TURN_FILE, Task.INTERRUPTION: INTERRUPT_FILE}.get(sample.task)
    if name is None:
        return 0.0
    path = sample.file(name)
    if not is_file(path):
        raise SampleError(f"{name} is missing: copy it from the benchmark's data, or name that folder with --data")
    # turn_taking.json marks the stretch in which the agent should answer, interrupt.json the interruption.
    return read_event(path)[0 if sample.task is Task.TURN_TAKING else 1]


def _pause(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> Values:
    yield TOR, float(takes_over(heard.words))


def _turn(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> Values:
    """Takeover, and latency only with one."""
    over = takes_over(heard.words)
    yield TOR, float(over)
    if over:
        yield LATENCY, latency(heard.words, since_s)


def _interruption(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> Values:
    """The same, the likeness of the voice, and the judge's grade of what was said."""
    yield from _turn(sample, scoring, heard, since_s)
    if scoring.similarity:
        likeness = scoring.similarity(read_recording(sample.folder / OUTPUT))
        if likeness is not None:
            yield SSIM, likeness
    if scoring.judge and takes_over(heard.words):
        event = first_event(sample.file(INTERRUPT_FILE))
        user, interruption = (str(event.get(key, "")) for key in ("context", "interrupt"))
        asked = {"user": user, "interruption": interruption, "assistant": heard.text}
        yield ANSWER, scoring.judge(INTERRUPTION, asked)


def _backchannel(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> Values:
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


def _overlap(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> Values:
    """Latencies by who speaks when, rates of words before and after the event, and the judge's class."""
    event_s, answer = read_overlap(sample.file(METADATA)), read_recording(sample.folder / OUTPUT)
    agent = merged(segments_s(answer), AGENT_PAUSE_S)
    user = merged(segments_s(read_recording(sample.file(INPUT))), USER_PAUSE_S)
    yield STOP, lengths(stops(user, agent))
    yield RESPONSE, lengths(responses(user, agent))
    for key, words_a_minute in zip(
        (RATE_BEFORE, RATE_AFTER), rates(heard.words, event_s[1], answer.seconds), strict=True
    ):
        if words_a_minute is not None:
            yield key, words_a_minute
    if scoring.judge:
        behaviour = scoring.judge(BEHAVIOUR, _both_ways(sample, scoring, heard, event_s))
        yield from ((SHARE_OF[name], float(name == behaviour)) for name in BEHAVIOURS)


def _both_ways(sample: Sample, scoring: Scoring, heard: Transcript, event_s: Segment) -> dict[str, Any]:
    """The conversation without the event and with it, for the judge."""
    return {
        "kind": sample.task.partition(",")[0],
        "event": event_s,
        "user_without": _timed(scoring.words(sample, 0.0, CLEAN_INPUT)),
        "assistant_without": _timed(scoring.words(sample, 0.0, CLEAN_OUTPUT)),
        "user_with": _timed(scoring.words(sample, 0.0, INPUT)),
        "assistant_with": _timed(heard),
    }


def _timed(heard: Transcript) -> str:
    """Words with their times, such as: Sure,[1.2-1.5] it[1.6-1.7]"""
    return " ".join(f"{word.text.strip()}[{word.start_s:.1f}-{word.end_s:.1f}]" for word in heard.words)


def _service(sample: Sample, scoring: Scoring, heard: Transcript, since_s: float) -> Values:
    """The judge's grades; a missing reply needs no judge."""
    facts = read_service(sample.file(METADATA))
    if scoring.judge:
        asked = {"instructions": facts.role, "customer": facts.question, "agent": heard.text}
        grades = scoring.judge(SERVICE, asked) if heard.words else (0.0, 0.0)
        yield from zip((NATURALNESS, ADHERENCE), grades, strict=True)


MEASURES: Mapping[Task, Callable[[Sample, Scoring, Transcript, float], Values]] = MappingProxyType(
    {
        Task.PAUSE: _pause,
        Task.BACKCHANNEL: _backchannel,
        Task.TURN_TAKING: _turn,
        Task.INTERRUPTION: _interruption,
        Task.SERVICE: _service,
        **dict.fromkeys(OVERLAPS, _overlap),
    }
)
