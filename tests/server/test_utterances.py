"""Utterances: which frames of an agent without turns belong to one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplex.server.utterances import PATIENCE_FRAMES, PAUSE_FRAMES, Cut, SoundGate, Utterances

NOTHING = Cut()
PAUSE = [False] * PAUSE_FRAMES


def cuts(utterances: Utterances, voiced: list[bool]) -> list[Cut]:
    return [utterances.take(is_voiced) for is_voiced in voiced]


def test_a_pause_is_between_0_8_and_1_second() -> None:
    assert 0.8 <= PAUSE_FRAMES * 0.08 <= 1.0


def test_it_begins_with_the_first_voiced_frame_and_ends_after_a_pause() -> None:
    utterances = Utterances()
    found = cuts(utterances, [False, False, True, True, *PAUSE, False])
    assert found[:4] == [NOTHING, NOTHING, Cut(True, True, False), Cut(False, True, False)]
    assert found[4:-2] == [Cut(False, True, False)] * (PAUSE_FRAMES - 1)
    assert found[-2:] == [Cut(False, True, True), NOTHING]
    assert not utterances.is_open


def test_a_shorter_pause_does_not_end_it() -> None:
    utterances = Utterances()
    found = cuts(utterances, [True, *PAUSE[1:], True, *PAUSE])
    assert [cut.ends for cut in found].count(True) == 1 and found[-1].ends
    assert [cut.begins for cut in found].count(True) == 1


def test_what_was_asked_for_begins_at_once_and_ends_empty_after_5_seconds() -> None:
    utterances = Utterances()
    cuts(utterances, [False] * 30)
    utterances.ask()
    assert utterances.is_open and utterances.is_empty
    found = cuts(utterances, [False] * 100)
    ends = [place for place, cut in enumerate(found) if cut.ends]
    assert ends == [PATIENCE_FRAMES - 1] and 4.8 <= PATIENCE_FRAMES * 0.08 <= 5.1
    assert not any(cut.begins or cut.belongs for cut in found)


def test_what_was_asked_for_ends_after_a_pause_if_the_agent_speaks() -> None:
    utterances = Utterances()
    utterances.ask()
    found = cuts(utterances, [*[False] * 40, True, *PAUSE])
    assert [cut.belongs for cut in found] == [False] * 40 + [True] * (PAUSE_FRAMES + 1)
    assert [cut.ends for cut in found] == [False] * (40 + PAUSE_FRAMES) + [True]
    assert not utterances.is_empty


def test_after_a_cancel_nothing_belongs_to_an_utterance_until_the_agent_pauses() -> None:
    utterances = Utterances()
    cuts(utterances, [True, True])
    utterances.cancel()
    assert cuts(utterances, [True, False, True, *PAUSE]) == [NOTHING] * (3 + PAUSE_FRAMES)
    assert cuts(utterances, [True])[0].begins


def test_an_utterance_that_is_asked_for_after_a_cancel_waits_for_the_pause() -> None:
    utterances = Utterances()
    cuts(utterances, [True])
    utterances.cancel()
    utterances.ask()
    assert not any(cut.belongs for cut in cuts(utterances, [True] * 100))
    assert utterances.is_open
    cuts(utterances, PAUSE)
    assert cuts(utterances, [True]) == [Cut(False, True, False)]


def test_cancelling_an_empty_utterance_in_a_pause_drops_nothing() -> None:
    utterances = Utterances()
    utterances.ask()
    utterances.cancel()
    assert cuts(utterances, [True])[0].begins


@given(st.lists(st.sampled_from([True, False, "ask", "cancel"]), max_size=200))
def test_an_utterance_is_open_between_its_first_and_its_last_frame(steps: list[bool | str]) -> None:
    utterances = Utterances()
    is_open = False
    for step in steps:
        if step == "ask":
            utterances.ask()
            is_open = True
        elif step == "cancel":
            utterances.cancel()
            is_open = False
        else:
            cut = utterances.take(bool(step))
            assert not (cut.begins and is_open) and (cut.belongs or not cut.begins)
            is_open = (is_open or cut.begins) and not cut.ends
            assert not cut.belongs or is_open or cut.ends
        assert utterances.is_open == is_open


@pytest.mark.parametrize("frames", [10, 1000])
def test_an_agent_that_never_pauses_has_one_utterance(frames: int) -> None:
    found = cuts(Utterances(), [True] * frames)
    assert [cut.begins for cut in found] == [True] + [False] * (frames - 1)
    assert not any(cut.ends for cut in found)


def level(rms: float) -> np.ndarray:
    """A frame of this loudness, 32768 for full scale."""
    return np.full(1920, rms / 32_768, np.float32)


@pytest.mark.parametrize("noise", [0, 20, 59, 80, 95])
def test_the_codecs_own_noise_is_silence_and_quiet_speech_is_not(noise: float) -> None:
    gate = SoundGate()
    gate.is_open(level(noise))
    assert not any(gate.is_open(level(noise * change)) for change in (0.9, 1, 1.2, 1))
    assert gate.is_open(level(310)) and gate.is_open(level(3000))
    assert gate.is_open(level(61)) == (noise <= 20)


def test_an_agent_that_begins_loudly_is_heard() -> None:
    assert SoundGate().is_open(level(5000))
    assert not SoundGate().is_open(level(50))
