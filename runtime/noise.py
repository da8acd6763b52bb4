"""Per-session sampling noise: a seed gives the same conversation whatever else is in the batch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pplex.runtime.config import MAX_CANDIDATES
from pplex.runtime.errors import NoiseError

Noise32 = npt.NDArray[np.float32]

_FRAME_BLOCKS = 1 << 64  # counter values set apart for one frame


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
    text[...], audio[...] = 1, 1
    text[: noise.text.shape[-1]] = noise.text
    audio[:, : noise.audio.shape[-1]] = noise.audio[: len(audio)]
