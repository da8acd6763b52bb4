"""Turn-taking: rules on exact times, and planted speech through the real voice activity detector."""

import numpy as np
import pytest
from planted import planted
from scipy.spatial.distance import jensenshannon

from pplex.validate.speech.detector import SpeechDetector
from pplex.validate.speech.turns import (
    INTERRUPTED,
    INTERRUPTION,
    LONG_TURN,
    METRICS,
    PAUSE,
    TURN_END,
    Dialogue,
    Event,
    Segment,
    Values,
    backchannel_profile,
    divergence,
    joined,
    measure_turns,
    overlap,
)

ONSET_S = 0.05
END_S = 0.064  # two windows of the detector
Agents = list[list[Segment]]


@pytest.fixture(scope="module")
def detect() -> SpeechDetector:
    return SpeechDetector()


def heard(detect: SpeechDetector, seconds: float, user: list[Segment], events: list[Event], agents: Agents) -> Values:
    """The metrics of planted audio: each agent meets the same user."""
    said = detect(planted(seconds, *user, seed=100))
    return measure_turns(
        Dialogue(said, detect(planted(seconds, *agent, seed=20 * i)), events) for i, agent in enumerate(agents)
    )


# Planted audio.


def test_gaps_after_user_turns_are_measured(detect: SpeechDetector) -> None:
    """Two answers, after 0.2 s and 0.7 s, a backchannel and silence: two takeovers of four."""
    agents: Agents = [[(2.7, 4.0)], [(3.2, 5.0)], [(3.0, 3.5)], []]
    values = heard(detect, 5.5, [(0.5, 2.5)], [Event(TURN_END, 2.5, 5.5)], agents)
    assert values["takeover_rate"] == (1, 1, 0, 0)
    assert values["latency_s"] == pytest.approx([0.2, 0.7], abs=ONSET_S)
    assert values["overlap_s"] == pytest.approx([0, 0, 0, 0], abs=END_S)


def test_an_answer_over_the_last_user_word_has_no_latency(detect: SpeechDetector) -> None:
    values = heard(detect, 5, [(0.5, 2.5)], [Event(TURN_END, 2.5, 5)], [[(2.1, 4.0)]])
    assert values["takeover_rate"] == (1,) and values["latency_s"] == (0,)
    assert values["overlap_s"] == pytest.approx([0.4], abs=END_S)


def test_pauses_of_the_user_are_measured(detect: SpeechDetector) -> None:
    """One agent takes over in the pause, one gives a backchannel, one speaks only after the end."""
    user, events = [(0.5, 2.0), (3.2, 4.5)], [Event(PAUSE, 2.0, 3.2), Event(TURN_END, 4.5, 7)]
    values = heard(detect, 7, user, events, [[(2.6, 4.0)], [(2.4, 2.9)], [(4.8, 6.2)]])
    assert values["pause_takeover_rate"] == (1, 0, 0)
    assert values["takeover_rate"] == (0, 0, 1)
    assert values["latency_s"] == pytest.approx([0.3], abs=ONSET_S)


def test_backchannels_in_a_long_turn_are_counted(detect: SpeechDetector) -> None:
    """Three backchannels, one takeover, and an answer that overlaps the turn's end, which is neither."""
    agents: Agents = [[(1.5, 1.9), (3.4, 3.8), (5.6, 6.2)], [(2.0, 4.0)], [(6.2, 7.8)]]
    values = heard(detect, 8, [(0.5, 6.5)], [Event(LONG_TURN, 0.5, 6.5)], agents)
    assert values["backchannel_frequency"] == (3 / 6, 0, 0)
    assert values["long_turn_takeover_rate"] == (0, 1, 0)


def test_interruptions_are_measured(detect: SpeechDetector) -> None:
    """One agent stops after 0.5 s and answers 0.4 s later, one only stops, one was silent and answers."""
    user = [(0.5, 1.5), (3.0, 4.5)]
    events = [Event(INTERRUPTION, 3.0, 4.5), Event(INTERRUPTED, 4.5, 7)]
    values = heard(detect, 7, user, events, [[(1.9, 3.5), (4.9, 6.4)], [(1.7, 3.3)], [(4.7, 6.0)]])
    assert values["stop_latency_s"] == pytest.approx([0.5, 0.3], abs=END_S)
    assert values["interruption_takeover_rate"] == (1, 0, 1)
    assert values["interruption_latency_s"] == pytest.approx([0.4, 0.2], abs=ONSET_S)


# Rules.


def of_one(agent: list[Segment], *events: Event) -> Values:
    return measure_turns([Dialogue([], agent, events)])


@pytest.mark.parametrize(
    "agent, latency_s",
    [
        ([(2.5, 3.5)], 0.5),  # as long as a turn must be
        ([(2.5, 3.49)], None),
        ([(2.5, 3.0), (3.4, 3.9)], 0.5),  # a breath is not the end
        ([(2.5, 3.2), (3.8, 4.5)], None),  # two backchannels
        ([(1.0, 3.2)], 0.0),  # speaks on
        ([(1.0, 2.9)], None),  # earlier speech does not count
        ([(4.9, 6.0)], 2.9),  # begun before the user speaks again
        ([(5.0, 7.0)], None),
    ],
)
def test_takeovers_are_detected(agent: list[Segment], latency_s: float | None) -> None:
    values = of_one(agent, Event(TURN_END, 2, 5))
    assert values["takeover_rate"] == (latency_s is not None,)
    assert values["latency_s"] == (() if latency_s is None else pytest.approx((latency_s,)))


def test_an_agent_that_never_stops_is_measured_until_it_does() -> None:
    values = of_one([(0, 9)], Event(INTERRUPTION, 3, 4), Event(INTERRUPTED, 4, 9))
    assert values["stop_latency_s"] == (6,) and values["interruption_latency_s"] == (0,)


def test_every_metric_exists_without_dialogue() -> None:
    assert measure_turns([]) == {metric: () for metric in METRICS}


def test_segments_with_short_gaps_are_joined() -> None:
    segments = [(0.0, 1.0), (1.2, 2.0), (2.5, 3.0)]
    assert joined(segments, 0.5) == [(0, 2), (2.5, 3)]
    assert joined(segments, 0.1) == segments and joined([]) == []


def test_overlap_is_the_time_in_which_both_speak() -> None:
    assert overlap([(0, 2), (3, 5)], [(1, 4), (4.5, 9)]) == pytest.approx(1 + 1 + 0.5)


# Divergence.


def test_profile_counts_from_the_turns_start_and_leaves_turns_out() -> None:
    event = Event(LONG_TURN, 1, 2)
    dialogues = [
        Dialogue([], [(1.3, 1.5), (3, 3.5)], [event]),
        Dialogue([], [(1.0, 2.5)], [event]),
        Dialogue([], [(1.5, 1.6)], [event, Event(TURN_END, 2, 4)]),
    ]
    assert backchannel_profile(dialogues) == pytest.approx([0, 0.1, 0.2, 0, 0])
    assert len(backchannel_profile([])) == 0


@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_the_square_of_the_distance(seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = (random.uniform(0, 1, 40) * (random.uniform(0, 1, 40) > 0.6) for _ in range(2))
    assert divergence(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert divergence(p, q) == pytest.approx(divergence(q, p)) and divergence(p, 3 * p) == pytest.approx(0)


def test_divergence_without_backchannels_is_defined() -> None:
    none, some, others = np.zeros(4), np.array([0, 1.0, 0, 0]), np.array([0, 0, 1.0, 1.0])
    assert divergence(none, none) is None
    assert divergence(none, some) == divergence(some, none) == 1
    assert divergence(some, others) == 1
