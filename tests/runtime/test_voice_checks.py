"""Recordings that make a bad voice are named with the fault, and clean ones pass."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import soxr
from conversations import ROOM

from pplex.runtime.arrays import Pcm
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import MOSHI
from pplex.runtime.errors import AudioError, PromptError
from pplex.runtime.synthetic_speech import speech_like
from pplex.runtime.voice_checks import check_takes_voices, faults, prepared


def words(seconds: float, seed: int = 0) -> Pcm:
    """Speech-like sound whose loudness changes as that of words with pauses, [samples] at 24 kHz."""
    random = np.random.default_rng(seed)
    sound = speech_like(int(seconds * 12.5), 1920, seed)
    sound += 0.02 * random.standard_normal(len(sound)).astype(np.float32)  # breath, up to 12 kHz
    knots = random.gamma(1, 1, int(seconds * 8)) * (random.random(int(seconds * 8)) > 0.25)
    loudness = np.interp(np.arange(len(sound)), np.linspace(0, len(sound), len(knots)), knots)
    spoken = sound * loudness
    noise = 1e-4 * random.standard_normal(len(sound))
    return (0.5 * spoken / np.abs(spoken).max() + noise).astype(np.float32)


def clipped(pcm: Pcm) -> Pcm:
    return np.clip(pcm, -0.1, 0.1)


def clipped_at_another_rate(pcm: Pcm) -> Pcm:
    """Clipped by a recorder of 44.1 kHz, resampled, and made quieter."""
    return 0.3 * soxr.resample(clipped(soxr.resample(pcm, 24_000, 44_100)), 44_100, 24_000)


def telephone(pcm: Pcm) -> Pcm:
    return soxr.resample(soxr.resample(pcm, 24_000, 8_000), 8_000, 24_000)


def noisy(pcm: Pcm) -> Pcm:
    return pcm + np.random.default_rng(1).normal(0, 0.03, len(pcm)).astype(np.float32)


def with_hum(pcm: Pcm) -> Pcm:
    return pcm + (0.1 * np.sin(2 * np.pi * 100 * np.arange(len(pcm)) / 24_000)).astype(np.float32)


def mostly_pause(pcm: Pcm) -> Pcm:
    return np.concatenate([pcm[: 24_000 * 3 // 2], 1e-4 * np.ones(24_000 * 6, np.float32)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("seconds", [3.2, 4, 14])
def test_a_clean_recording_has_no_fault(seconds: float, seed: int) -> None:
    assert list(faults(words(seconds, seed))) == []


@pytest.mark.parametrize(
    "spoil, fault",
    [
        (clipped, "it is clipped"),
        (clipped_at_another_rate, "it is clipped"),
        (telephone, "nothing above 3"),
        (noisy, "dB below the speech"),
        (with_hum, "dB below the speech"),
        (mostly_pause, "are sound. Cut the pauses"),
        (lambda pcm: 0.005 * pcm, "it is very quiet"),
        (lambda pcm: pcm[: 24_000 * 2], "it lasts 2.0 s. 3 to 15 s are advised"),
        (lambda pcm: np.tile(pcm, 5), "it lasts 20.0 s"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_is_named_alone(spoil: Callable[[Pcm], Pcm], fault: str) -> None:
    for seed in range(3):
        found = list(faults(spoil(words(4, seed))))
        assert len(found) == 1 and fault in found[0], found


def test_the_longest_recording_fits_and_one_frame_more_does_not(tiny_bundle: Bundle) -> None:
    longest = ROOM - 11
    assert prepared(words(20)[: 1920 * longest], tiny_bundle.config, "a.wav").shape == (longest, 1920)
    with pytest.raises(AudioError, match=r"a\.wav lasts 6\.72 s, but the model has room for 6\.64 s at most\.\nCut it"):
        prepared(words(20)[: 1920 * (longest + 1)], tiny_bundle.config, "a.wav")


@pytest.mark.parametrize("pcm, why", [(np.zeros(48_000, np.float32), "silent"), (words(4)[:2400], "lasts 0.10 s")])
def test_a_silent_or_very_short_recording_is_refused_by_name(tiny_bundle: Bundle, pcm: Pcm, why: str) -> None:
    with pytest.raises(AudioError, match=rf"ann\.wav cannot be a voice\. .*{why}"):
        prepared(pcm, tiny_bundle.config, "ann.wav")


def test_a_moshi_model_takes_no_voices(tiny_bundle: Bundle) -> None:
    check_takes_voices(tiny_bundle.folder, tiny_bundle.config)
    with pytest.raises(PromptError, match=f"{re.escape(str(tiny_bundle.folder))} holds a Moshi model"):
        check_takes_voices(tiny_bundle.folder, replace(tiny_bundle.config, family=MOSHI))
