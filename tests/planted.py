"""Audio with speech at chosen times."""

from collections.abc import Iterable

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.validate.speech.spoken import spoken
from pplex.validate.speech.turns import Segment


def planted(seconds: float, *speech: Segment, seed: int = 0) -> Pcm:
    """[samples] at 24 kHz, silent except for the given stretches of speech; the end cuts off the last one."""
    pcm = np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)
    for i, (start, end) in enumerate(speech):
        ahead = pcm[round(start * SAMPLE_RATE_HZ) :]
        said = spoken(end - start, seed + i)[: len(ahead)]
        ahead[: len(said)] = said
    return pcm


def near(found: Iterable[Segment], expected: Iterable[Segment], within_s: float) -> bool:
    """Whether the same number of stretches was found, with all bounds within the tolerance."""
    found, expected = list(found), list(expected)
    return len(found) == len(expected) and bool(np.all(np.abs(np.subtract(found, expected)) <= within_s))
