"""Stream health: every planted fault is found at its place."""

from dataclasses import replace

import numpy as np
import pytest

from pplex.runtime.arrays import Pcm, Tokens
from pplex.validate.recording import ScenarioRecording
from pplex.validate.sections.health import SYMPTOMS, health_section, longest_run, looped, measure_health
from pplex.validate.speech.scenarios import make_scenarios, synthetic_speech

FRAMES, SIZE = 50, 1920
FRAME_S = 0.08
SCENARIO = make_scenarios(synthetic_speech(), 0.05)[0]


def healthy() -> tuple[Pcm, Tokens]:
    """A stream that speaks all the time, with a different word in every fourth frame."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 2048, (FRAMES, 17))
    tokens[:, 0] = np.where(np.arange(FRAMES) % 4 == 1, 100 + np.arange(FRAMES), 3)
    return random.normal(0, 0.1, FRAMES * SIZE).astype(np.float32), tokens


def values_of(pcm: Pcm, tokens: Tokens) -> dict[str, float | None]:
    return dict(measure_health(pcm, tokens, SIZE))


def recording(pcm: Pcm, tokens: Tokens, run: str = "seed 0") -> ScenarioRecording:
    return ScenarioRecording(SCENARIO, run, pcm, tokens)


def test_a_healthy_stream_has_no_findings() -> None:
    found = values_of(*healthy())
    assert found.pop("text_share") == pytest.approx(0.26)
    assert found.pop("longest_text") == pytest.approx(FRAME_S)
    assert found.pop("dc_offset") == pytest.approx(0, abs=0.001)
    assert set(found.values()) == {0}


def test_nan_samples_are_counted() -> None:
    pcm, tokens = healthy()
    pcm[:96], pcm[500] = np.nan, np.inf
    found = values_of(pcm, tokens)
    assert found["non_finite"] == pytest.approx(97 / len(pcm)) and found["clipping"] == 0


def test_clipping_and_offset_are_measured() -> None:
    pcm, tokens = healthy()
    assert values_of(pcm + np.float32(0.25), tokens)["dc_offset"] == pytest.approx(0.25, abs=0.001)
    pcm[100:400], pcm[400:700], pcm[700] = 1.0, -1.5, 0.999
    assert values_of(pcm, tokens)["clipping"] == pytest.approx(600 / len(pcm))


def test_dead_air_is_silence_during_words() -> None:
    """Frames 10-19 are silent: the words of frames 13 and 17 are inaudible, and that of frame 9 is audible."""
    pcm, tokens = healthy()
    pcm.reshape(FRAMES, SIZE)[10:20] *= 1e-3  # -80 dBFS
    found = values_of(pcm, tokens)
    assert found["dead_air"] == pytest.approx(2 / 13) and found["longest_dead_air"] == pytest.approx(7 * FRAME_S)
    tokens[:, 0] = 3
    found = values_of(pcm, tokens)
    assert found["dead_air"] is None and found["longest_dead_air"] is None
    tokens[-1, 0] = 50
    assert values_of(np.zeros_like(pcm), tokens)["dead_air"] == 1


def test_a_pause_after_a_word_is_not_dead_air() -> None:
    pcm, tokens = healthy()
    pcm.reshape(FRAMES, SIZE)[[10, 11]] = 0
    assert values_of(pcm, tokens)["dead_air"] == 0


def test_repeated_frames_are_those_of_the_agent() -> None:
    pcm, tokens = healthy()
    tokens[20:25, 1:9] = tokens[20, 1:9]
    tokens[30:40, 9:] = tokens[30, 9:]  # the user's
    tokens[41, 1:8] = tokens[40, 1:8]  # all but one
    found = values_of(pcm, tokens)
    assert found["repeated_frames"] == pytest.approx(4 / 49)
    assert found["longest_repetition"] == pytest.approx(5 * FRAME_S)


@pytest.mark.parametrize(
    "words, share",
    [
        ([7, 8, 9, 7, 8, 9, 7, 8, 9, 5], 0.9),
        ([1, 7, 8, 7, 8, 7, 3, 4, 5, 6], 0),  # twice and a half
        ([4] * 3 + [1, 2, 3], 0.5),
        ([*range(16)] * 3, 1),
        ([*range(17)] * 3, 0),  # longer than is looked for
        ([], 0),
        ([1, 1], 0),
    ],
)
def test_looped_text_is_found(words: list[int], share: float) -> None:
    assert looped(np.array(words)) == pytest.approx(share)


def test_runaway_text_is_found() -> None:
    pcm, tokens = healthy()
    tokens[20:32, 0] = 500 + np.arange(12)
    tokens[45:50, 0] = [0, 1, 2, 3, 0]  # every kind of padding
    found = values_of(pcm, tokens)
    assert found["longest_text"] == pytest.approx(12 * FRAME_S)
    assert found["text_share"] == pytest.approx(float((tokens[:, 0] > 3).mean()))


def test_longest_run_is_found() -> None:
    assert [longest_run(np.array(list(map(int, row)), bool)) for row in ("", "0", "1", "0110111", "1110")] == [
        0,
        0,
        1,
        3,
        3,
    ]


def test_section_fails_only_if_the_reference_is_healthy() -> None:
    pcm, tokens = healthy()
    ill = recording(np.clip(pcm * 30, -1, 1), tokens, "greedy")
    well = [recording(pcm, tokens), replace(ill, pcm=pcm)]
    failures = health_section([well[0], ill], well, SIZE).failures
    assert [(measure.name, measure.where) for measure in failures] == [("health.clipping", ill.name)]
    assert not health_section([well[0], ill], [well[0], ill], SIZE).failures
    assert not health_section(well, well, SIZE).failures


def test_section_has_a_measure_for_every_symptom_and_names_missing_ones() -> None:
    pcm, tokens = healthy()
    tokens[:, 0] = 3
    section = health_section([recording(pcm, tokens)], [recording(*healthy())], SIZE)
    assert [measure.name for measure in section.measures] == [f"health.{symptom}" for symptom in SYMPTOMS]
    lacking = [measure for measure in section.measures if measure.value is None]
    assert [measure.name for measure in lacking] == ["health.dead_air", "health.longest_dead_air"]
    assert all(measure.tolerance is None for measure in lacking) and len(section.notes) == 2
