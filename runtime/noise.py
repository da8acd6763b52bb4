"""Per-session sampling noise: a seed gives the same conversation whatever else is in the batch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pplex.runtime.config import MAX_CANDIDATES

Noise32 = npt.NDArray[np.float32]

_FRAME_BLOCKS = 1 << 64  # counter values set apart for one frame


@dataclass(frozen=True)
class FrameNoise:
    """Recorded Exp(1) draws for one frame: text [n], audio [K, n], entry i for the i-th most probable candidate."""

    text: Noise32
    audio: Noise32


def draw(seed: int, frame: int, text: Noise32, audio: Noise32) -> None:
    """Fill text [N] and audio [K, N] with Exp(1) draws that depend on the seed and the frame number only.

    Philox is counter-based: the frame number is the counter, so no state has to be saved or carried between slots.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=frame * _FRAME_BLOCKS))
    generator.standard_exponential(dtype=np.float32, out=text)
    generator.standard_exponential(dtype=np.float32, out=audio)
    # A draw of exactly zero would win any race, and 0/0 would lose it as a NaN.
    np.maximum(text, np.finfo(np.float32).tiny, out=text)
    np.maximum(audio, np.finfo(np.float32).tiny, out=audio)


def replay(noise: FrameNoise, text: Noise32, audio: Noise32) -> None:
    """Fill text [N] and audio [K, N] from recorded draws; candidates beyond the recorded ones get 1."""
    assert noise.text.shape[-1] <= MAX_CANDIDATES and noise.audio.shape[-1] <= MAX_CANDIDATES
    text[...], audio[...] = 1, 1
    text[: noise.text.shape[-1]] = noise.text
    audio[:, : noise.audio.shape[-1]] = noise.audio[: len(audio)]
