"""The segments of speech that silero-vad finds."""

import sys

import numpy as np
import pytest
import torch
from planted import near, planted

from pplex.validate.speech.detector import SpeechDetector


@pytest.fixture(scope="module")
def detect() -> SpeechDetector:
    return SpeechDetector()


@pytest.mark.parametrize("seed", range(4))
def test_finds_planted_speech_to_two_of_its_windows(detect: SpeechDetector, seed: int) -> None:
    speech = [(0.71, 1.06), (1.9, 3.4), (4.43, 5.23)]
    assert near(detect(planted(6, *speech, seed=10 * seed)), speech, 0.064)


def test_finds_speech_up_to_both_ends_of_the_recording(detect: SpeechDetector) -> None:
    assert near(detect(planted(1, (0, 1))), [(0, 1)], 0.064)


def test_hears_no_speech_in_other_sounds(detect: SpeechDetector) -> None:
    time_s = np.arange(48_000) / 24_000
    hiss = np.random.default_rng(0).normal(0, 0.1, 48_000)
    for pcm in (np.zeros(48_000), hiss, 0.5 * np.sin(2 * np.pi * 440 * time_s), np.zeros(0)):
        assert detect(pcm.astype(np.float32)) == []


def test_nan_samples_count_as_silence(detect: SpeechDetector) -> None:
    pcm = planted(3, (1, 2))
    broken = pcm.copy()
    broken[:12_000:7], broken[60_000] = np.nan, np.inf
    assert detect(broken) == detect(pcm)


def test_does_not_change_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "silero_vad"]:
        monkeypatch.delitem(sys.modules, name)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        SpeechDetector()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
