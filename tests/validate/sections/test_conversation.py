"""Turns of engine and reference side by side, for the tiny model and for planted recordings."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from folders import TINY
from planted import planted

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.bundle import Bundle
from pplex.runtime.graphs import graph_specs
from pplex.runtime.precision import FP32
from pplex.runtime.session import Runtime
from pplex.validate.parting import Judge
from pplex.validate.recording import ScenarioRecording, make_runs, record
from pplex.validate.reference import as_float32, torch_backend
from pplex.validate.report.schema import Measure, Section
from pplex.validate.sections.conversation import conversation_section, first_difference
from pplex.validate.speech.detector import SpeechDetector
from pplex.validate.speech.scenarios import Scenario, make_scenarios, synthetic_speech
from pplex.validate.speech.turns import Segment

INT8 = {**FP32, "temporal": "int8"}
CHECKPOINT = open_checkpoint(TINY / "checkpoint")
JUDGE = Judge(CHECKPOINT, CHECKPOINT.config, graph_specs(CHECKPOINT.config))


@pytest.fixture(scope="module")
def detect() -> SpeechDetector:
    return SpeechDetector()


def measures(section: Section) -> dict[str, Measure]:
    return {measure.name.removeprefix("conversation."): measure for measure in section.measures}


# The tiny model.


@pytest.fixture(scope="module")
def sides(tiny_bundle: Bundle) -> tuple[Sequence[ScenarioRecording], Sequence[ScenarioRecording]]:
    """Recordings of the bundle and of the reference."""
    short, runs = make_scenarios(synthetic_speech(), 0.15), make_runs([1])
    backend = torch_backend(CHECKPOINT, tiny_bundle.config)
    engine, reference = Runtime(tiny_bundle, 2), Runtime(as_float32(tiny_bundle), 2, device=backend, logits=True)
    ours, theirs = (record(runtime, short, runs, "NATM1", "Hi.").recordings for runtime in (engine, reference))
    return ours, theirs


def test_a_float32_bundle_says_the_same_as_the_reference(
    tiny_bundle: Bundle, sides: tuple[Sequence[ScenarioRecording], Sequence[ScenarioRecording]], detect: SpeechDetector
) -> None:
    section = conversation_section(*sides, tiny_bundle.precision, detect, JUDGE)
    equal = measures(section)["tokens_equal"]
    assert equal.value == 1 and equal.tolerance is not None and not equal.where
    assert not section.failures
    assert len(section.plots) == 4 and len(section.tables[1].rows) == 8


def test_a_token_that_differs_fails_in_float32_only(
    sides: tuple[Sequence[ScenarioRecording], Sequence[ScenarioRecording]], detect: SpeechDetector
) -> None:
    engine, reference = sides
    tokens = engine[3].tokens.copy()
    tokens[7, 4] += 1
    changed = [*engine[:3], replace(engine[3], tokens=tokens), *engine[4:]]
    assert first_difference(changed[3], reference[3]) == 7
    section = conversation_section(changed, reference, FP32, detect, JUDGE)
    (failure,) = section.failures
    assert failure.name == "conversation.tokens_equal"
    assert failure.where.startswith(f"{engine[3].name}, frame 7, agent 3: ")
    assert section.tables[2].rows[0][:3] == (engine[3].name, 7, "agent 3") and section.tables[2].rows[0][-1] is False
    lower = conversation_section(changed, reference, INT8, detect, JUDGE)
    assert not lower.failures and 0.99 < (measures(lower)["tokens_equal"].value or 0) < 1


def test_a_near_tie_is_listed_and_starts_another_conversation(
    sides: tuple[Sequence[ScenarioRecording], Sequence[ScenarioRecording]], detect: SpeechDetector
) -> None:
    engine, reference = sides
    found, tokens = reference[3].standings, engine[3].tokens.copy()
    assert found is not None
    near = replace(found, distances=found.distances.copy())
    near.distances[8, 4, 1] = 1e-9  # the frame's step draws its delayed codebooks
    tokens[7, 4] = near.tokens[8, 4, 1]
    tokens[8, 5:9] = tokens[9:, :9] = 0  # the tokens of later draws
    ours = [*engine[:3], replace(engine[3], tokens=tokens), *engine[4:]]
    theirs = [*reference[:3], replace(reference[3], standings=near), *reference[4:]]
    section = conversation_section(ours, theirs, FP32, detect, JUDGE)
    of_tokens = {name: m for name, m in measures(section).items() if name in ("tokens_equal", "near_ties")}
    assert all(m.passed for m in of_tokens.values()) and of_tokens["near_ties"].value == 1
    assert section.tables[2].rows[0][:3] == (engine[3].name, 7, "agent 3") and section.tables[2].rows[0][-1] is True


def test_a_wrong_user_code_fails_even_in_the_last_frame(
    sides: tuple[Sequence[ScenarioRecording], Sequence[ScenarioRecording]], detect: SpeechDetector
) -> None:
    engine, reference = sides
    tokens = engine[0].tokens.copy()
    tokens[-1, 9] = (tokens[-1, 9] + 1) % 2048
    section = conversation_section([replace(engine[0], tokens=tokens), *engine[1:]], reference, FP32, detect, JUDGE)
    assert [measure.name for measure in section.failures] == ["conversation.tokens_equal"]


# Planted recordings.

# Answers 0.2 s after every turn of the scenarios at their scale, and waits in the pause; stops when interrupted.
ANSWERS: dict[str, list[Segment]] = {
    "turn taking": [(2.3, 3.6)],
    "pause handling": [(3.62, 4.9)],
    "backchannel": [(1.5, 1.9), (6.5, 7.9)],
    "interruption": [(2.3, 4.1), (5.3, 6.6)],
}


@cache
def scenarios() -> tuple[Scenario, ...]:
    return make_scenarios(synthetic_speech(), 0.6)


def played(scenario: Scenario, speech: Sequence[Segment]) -> ScenarioRecording:
    frames = -(-len(scenario.pcm) // 1920)
    pcm = planted(frames * 0.08, *speech, seed=300)
    return ScenarioRecording(scenario, "seed 0", pcm, np.zeros((frames, 17), np.int64))


@cache
def agent(late_s: float = 0.0, silent_in: str = "", impatient: bool = False) -> list[ScenarioRecording]:
    """An agent that answers as planned, later, not at all in one scenario, or in the user's pause."""
    planned = {**ANSWERS, "pause handling": [(1.8, 4.9)]} if impatient else ANSWERS
    later = {name: [(start + late_s, end + late_s) for start, end in speech] for name, speech in planned.items()}
    return [played(scenario, [] if scenario.name == silent_in else later[scenario.name]) for scenario in scenarios()]


def twice(first: list[ScenarioRecording], second: list[ScenarioRecording] | None = None) -> list[ScenarioRecording]:
    """An agent in two runs: two events each for pauses and interruptions, and eight turns."""
    return [*first, *(replace(recording, run="greedy") for recording in second or first)]


def test_the_planted_turns_are_measured(detect: SpeechDetector) -> None:
    section = conversation_section(agent(), agent(), INT8, detect, JUDGE)
    found = {name: measure.value for name, measure in measures(section).items()}
    assert found["takeover_rate"] == 1 and found["interruption_takeover_rate"] == 1
    assert found["pause_takeover_rate"] == found["long_turn_takeover_rate"] == 0
    assert found["latency_ms"] == pytest.approx(200, abs=50)
    assert found["interruption_latency_ms"] == pytest.approx(200, abs=50)
    assert found["stop_ms"] == pytest.approx(200, abs=64)
    assert found["backchannel_frequency"] == pytest.approx(1 / 6)
    assert found["backchannel_divergence"] == pytest.approx(0)
    assert not section.failures


@pytest.mark.parametrize(
    "agents, failures",
    [
        ([{"late_s": 0.5}], {"latency_ms", "stop_ms", "interruption_latency_ms"}),
        ([{"silent_in": "interruption"}], {"interruption_takeover_rate"}),  # six turns of eight could be chance
        ([{"impatient": True}], {"pause_takeover_rate"}),
        ([{"late_s": 0.05}], set()),
        ([{"silent_in": "turn taking"}, {}], set()),
        ([{"silent_in": "interruption"}, {}], set()),
    ],
    ids=["late", "no answer", "no patience", "a little late", "one turn of eight", "one interruption of two"],
)
def test_an_engine_that_takes_its_turns_worse_fails(
    agents: list[dict[str, Any]], failures: set[str], detect: SpeechDetector
) -> None:
    engine = twice(*(agent(**changes) for changes in agents))
    section = conversation_section(engine, twice(agent()), INT8, detect, JUDGE)
    assert {measure.name.removeprefix("conversation.") for measure in section.failures} == failures


def test_one_event_is_too_few_for_a_limit(detect: SpeechDetector) -> None:
    section = conversation_section(agent(silent_in="interruption"), agent(), INT8, detect, JUDGE)
    assert measures(section)["interruption_takeover_rate"].tolerance is None
    loose = next(note for note in section.notes if "no value could fail" in note)
    assert "interruption_takeover_rate" in loose and "latency_ms" not in loose and ".takeover_rate" not in loose


def test_an_engine_that_takes_its_turns_better_passes(detect: SpeechDetector) -> None:
    assert not conversation_section(agent(), agent(late_s=0.5), INT8, detect, JUDGE).failures


def test_metrics_of_only_one_side_have_a_note_instead_of_a_limit(detect: SpeechDetector) -> None:
    mute = [played(scenario, []) for scenario in scenarios()]
    section = conversation_section(mute, agent(), INT8, detect, JUDGE)
    assert measures(section)["latency_ms"].value is None and measures(section)["latency_ms"].passed
    assert not measures(section)["takeover_rate"].passed
    assert any("latency_ms" in note and "No value for the engine" in note for note in section.notes)


def test_without_speech_on_both_sides_no_rate_has_a_limit(detect: SpeechDetector) -> None:
    mute = [played(scenario, []) for scenario in scenarios()]
    section = conversation_section(mute, mute, INT8, detect, JUDGE)
    assert all(measure.tolerance is None for measure in section.measures)
    assert any(note.startswith("No speech was detected") for note in section.notes)


def test_plot_shows_who_speaks_when(detect: SpeechDetector) -> None:
    section = conversation_section(agent(late_s=0.3), agent(), INT8, detect, JUDGE)
    plot = next(plot for plot in section.plots if "interruption" in plot.title)
    spans = {series.name: list(zip(series.x, series.y, strict=True)) for series in plot.series}
    assert plot.kind == "spans" and spans["user"] == list(scenarios()[3].speech)
    assert np.allclose(spans["reference"], ANSWERS["interruption"], atol=0.064)
    assert np.allclose(spans["engine"], np.add(ANSWERS["interruption"], 0.3), atol=0.064)
    assert [word for _, word in plot.marks] == ["turn end", "interruption", "interrupted", "end"]
