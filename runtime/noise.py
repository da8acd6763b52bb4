"""Per-session sampling noise: a seed gives the same conversation whatever else is in the batch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pplex.runtime.config import MAX_CANDIDATES
from pplex.runtime.errors import NoiseError

Noise32 = npt.NDArray[np.float32]

TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class FrameNoise:
    """Recorded Exp(1) draws for one frame: text [n], audio [K, n], entry i for the i-th most probable candidate."""

    text: Noise32
    audio: Noise32

    def check(self, steps: int) -> None:
        """Raise NoiseError unless the draws can be used: up to 512 candidates, `steps` codebooks or more, all positive."""
        shapes = self.text.shape, self.audio.shape
        widths = [shape[-1] if shape else 0 for shape in shapes]
        if [len(shape) for shape in shapes] != [1, 2] or len(self.audio) < steps or max(widths) > MAX_CANDIDATES:
            raise NoiseError(
                f"Recorded noise must be text [n] and audio [{steps} or more, n], n up to {MAX_CANDIDATES}; "
                f"this is {list(shapes[0])} and {list(shapes[1])}."
            )
        if not all((draws > 0).all() and np.isfinite(draws).all() for draws in (self.text, self.audio)):
            raise NoiseError("Recorded noise must be positive and finite: it is drawn from Exp(1).")


class NoiseSource:
    """Draws a session's noise, frame after frame: text [n] and audio [K, m], rows of arrays that engines read.

    A frame's draws depend on the seed, on how many frames were drawn before, and on n and m, which are the session's top-k:
    the graphs look at no candidate beyond it, and what the rows hold there only has to be positive.
    """

    def __init__(self, seed: int, text: Noise32, audio: Noise32):
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._drawn = np.empty(text.size + audio.size, np.float32)  # numpy draws into contiguous arrays only
        self._text, self._drawn_text = text, self._drawn[: text.size]
        self._audio, self._drawn_audio = audio, self._drawn[text.size :].reshape(audio.shape)

    def draw(self) -> None:
        """Write the next frame's Exp(1) draws, all above zero."""
        self._generator.standard_exponential(dtype=np.float32, out=self._drawn)
        # One draw in 2^23 is exactly zero, which would win any race, and 0/0 would lose it as a NaN.
        np.maximum(self._drawn, TINY, out=self._drawn)
        np.copyto(self._text, self._drawn_text)
        np.copyto(self._audio, self._drawn_audio)


def replay(noise: FrameNoise, text: Noise32, audio: Noise32) -> None:
    """Fill text [N] and audio [K, N] from recorded draws; candidates beyond the recorded ones get 1."""
    text[...], audio[...] = 1, 1
    text[: noise.text.shape[-1]] = noise.text
    audio[:, : noise.audio.shape[-1]] = noise.audio[: len(audio)]
