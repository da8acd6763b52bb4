"""The user's speech in the scenarios, and the places of the events."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted import near, planted

from pplex.runtime.errors import ReportError
from pplex.validate.speech.detector import SpeechDetector
from pplex.validate.speech.scenarios import Scenario, make_scenarios, recorded_speech, synthetic_speech

WITHIN_S = 0.064


@pytest.fixture(scope="module")
def detect() -> SpeechDetector:
    return SpeechDetector()


@pytest.fixture(scope="module")
def scenarios() -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in make_scenarios(synthetic_speech())}


def kinds(scenario: Scenario) -> list[str]:
    return [event.kind for event in scenario.events]


def test_the_four_scenarios_and_their_events(scenarios: dict[str, Scenario]) -> None:
    assert {name: kinds(scenario) for name, scenario in scenarios.items()} == {
        "turn taking": ["turn end"],
        "pause handling": ["pause", "turn end"],
        "backchannel": ["long turn", "turn end"],
        "interruption": ["turn end", "interruption", "interrupted"],
    }


def test_planted_speech_is_detected_in_its_place(scenarios: dict[str, Scenario], detect: SpeechDetector) -> None:
    for scenario in scenarios.values():
        assert near(detect(scenario.pcm), scenario.speech, WITHIN_S), scenario.name


def test_events_lie_between_the_users_words(scenarios: dict[str, Scenario]) -> None:
    pause, end = scenarios["pause handling"].events
    (_, first), (second, last) = scenarios["pause handling"].speech
    assert (pause.start_s, pause.end_s) == (first, second) and second - first == pytest.approx(1.2)
    assert (end.start_s, end.end_s) == (last, scenarios["pause handling"].seconds)
    question, interruption, interrupted = scenarios["interruption"].events
    assert question.end_s == interruption.start_s and interruption.end_s == interrupted.start_s


def test_scale_shortens_scenarios_and_the_seed_changes_them(scenarios: dict[str, Scenario]) -> None:
    short, again, other = (make_scenarios(synthetic_speech(seed), 0.1)[0] for seed in (0, 0, 1))
    assert short.seconds == pytest.approx(scenarios["turn taking"].seconds / 10)
    assert np.array_equal(short.pcm, again.pcm) and not np.array_equal(short.pcm, other.pcm)


def test_recordings_are_cut_where_speech_is_detected(tmp_path: Path, detect: SpeechDetector) -> None:
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "a.wav", planted(6, (0.8, 1.6), (2.5, 3.7)), 24_000)
    soundfile.write(tmp_path / "more" / "b.flac", planted(2, (0.5, 1.5), seed=5)[::2], 12_000)
    (tmp_path / "notes.txt").write_text("no recording")
    speech = recorded_speech(tmp_path, detect)
    pieces = [speech.say(seconds) for seconds in (1.0, 1.2, 0.5)]
    lengths_s = [piece.end_s - piece.start_s for piece in pieces]
    # A stretch that is too short is joined with the next one; after the last comes the first.
    assert lengths_s == pytest.approx([0.8 + 0.1 + 1.2, 1.0 + 0.1 + 0.8, 1.2], abs=WITHIN_S)
    assert [piece.start_s for piece in pieces] == pytest.approx([0.05] * 3)
    assert [len(piece.pcm) / 24_000 - piece.end_s for piece in pieces] == pytest.approx([0.05] * 3, abs=0.001)


def test_events_of_recordings_are_the_detected_ones(tmp_path: Path, detect: SpeechDetector) -> None:
    soundfile.write(tmp_path / "a.wav", planted(3, (0.8, 2.1)), 24_000)
    scenario = make_scenarios(recorded_speech(tmp_path, detect), 0.5)[1]
    assert near(detect(scenario.pcm), scenario.speech, WITHIN_S)
    pause, end = scenario.events
    assert (pause.start_s, pause.end_s) == (scenario.speech[0][1], scenario.speech[1][0])
    assert end.start_s == scenario.speech[1][1] and scenario.material == "recordings"


@pytest.mark.parametrize("silent_files", [0, 1])
def test_a_folder_without_speech_is_refused(tmp_path: Path, detect: SpeechDetector, silent_files: int) -> None:
    for i in range(silent_files):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(24_000), 24_000)
    with pytest.raises(ReportError, match=f"its {silent_files} recordings .* have none"):
        recorded_speech(tmp_path, detect)
