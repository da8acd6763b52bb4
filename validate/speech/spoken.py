"""Synthetic babble with sharp ends that voice activity detectors take for speech: the user if no recordings are given.

Vowels are harmonics of a falling pitch with four formants; consonants are short noises between them. silero-vad finds the
onset within 20 ms and the end within 55 ms, without gaps. `speech_like` is unfit for this: it has pauses at random places.
"""

from collections.abc import Iterable

import numpy as np

from pplex.runtime.arrays import Floats, Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ

LAW, SEE = (570, 840, 2410), (270, 2290, 3010)  # the first three formants of a vowel in Hz
VOWELS = (LAW, SEE, (730, 1090, 2440), (530, 1840, 2480), (300, 870, 2240), (490, 1350, 1690))
FOURTH_HZ = 3500
BANDWIDTHS_HZ = (80, 100, 140, 200)
PITCH_HZ = (90, 160)
HIGHEST_HZ = 4500
SYLLABLE_S, CONSONANT_S, RAMP_S = 0.19, 0.05, 0.005
PEAK = 0.5


def spoken(seconds: float, seed: int) -> Pcm:
    """Syllables that fill `seconds` from the first sample to the last: [samples] float32 at 24 kHz, within 0.5.

    The seed chooses the voice (its pitch) and the syllables; equal seeds give equal samples.
    """
    random = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    borders = np.linspace(0, seconds, max(2, round(seconds / SYLLABLE_S)) + 1)
    middles = (borders[:-1] + borders[1:]) / 2
    voice = _voice(_pitch(time_s, middles, random), _formants(time_s, middles, random))
    hiss = np.diff(random.standard_normal(len(time_s) + 1))  # loud at high frequencies, like an "s"
    closed = _consonants(time_s, borders[1:-1])
    pcm = voice * (1 - 0.9 * closed) + 0.15 * hiss * closed
    ends = np.clip(np.minimum(time_s, seconds - time_s) / RAMP_S, 0, 1)
    return np.asarray(PEAK * ends * pcm / np.abs(pcm).max(), np.float32)


def _pitch(time_s: Floats, middles: Floats, random: np.random.Generator) -> Floats:
    """Pitch in Hz of every sample: it varies by syllable and falls over the sentence."""
    melody = np.interp(time_s, middles, random.uniform(0.85, 1.2, len(middles)))
    pitch: Floats = random.uniform(*PITCH_HZ) * melody * np.linspace(1.1, 0.9, len(time_s))
    return pitch


def _formants(time_s: Floats, middles: Floats, random: np.random.Generator) -> list[Floats]:
    """The four formants in Hz of every sample, which glide from vowel to vowel.

    silero-vad detects an initial "law" and the end of a final "see" at once, other vowels up to 170 ms late.
    """
    order = [LAW, *random.choice(VOWELS, len(middles) - 2), SEE]
    vowels = np.array([(*vowel, FOURTH_HZ) for vowel in order])  # [syllables, 4]
    return [np.interp(time_s, middles, vowels[:, i]) for i in range(4)]


def _voice(pitch_hz: Floats, formants_hz: list[Floats]) -> Floats:
    """Harmonics with the loudness of glottis and formants at their frequency, normalised to constant loudness."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    voice, power = np.zeros_like(pitch_hz), np.zeros_like(pitch_hz)
    for k in range(1, int(HIGHEST_HZ / pitch_hz.min())):
        loudness = np.full_like(pitch_hz, 1 / k**2)
        for formant, width in zip(formants_hz, BANDWIDTHS_HZ, strict=True):
            ratio = (k * pitch_hz / formant) ** 2
            loudness /= (1 - ratio) ** 2 + ratio * (width / formant) ** 2  # a resonance of the second order
        voice += np.sqrt(loudness) * np.sin(k * phase)
        power += loudness
    equal: Floats = voice / np.sqrt(power)
    return equal


def _consonants(time_s: Floats, at_s: Iterable[float]) -> Floats:
    """How closed the mouth is, 0 to 1: half a cosine around each border between syllables, [samples]."""
    closed = np.zeros_like(time_s)
    for at in at_s:
        closed = np.maximum(closed, np.cos(np.pi * np.clip((time_s - at) / CONSONANT_S, -0.5, 0.5)))
    return closed
