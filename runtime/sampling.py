"""The settings of sampling only: the graphs draw the tokens (export/layers.py, `sample`).

The command line and the server read their defaults here. This module imports no library.

Called by `cli`, `runtime`, `server` and `validate`.
"""

from dataclasses import dataclass
from numbers import Integral

from pplex.runtime.config import MAX_CANDIDATES
from pplex.runtime.errors import PromptError

TEMPERATURES = (1e-6, 1e6)  # a lower temperature may overflow float32 when it divides logits; 0 / 0 is NaN


@dataclass(frozen=True)
class Sampling:
    """The settings of a session's draws; the defaults are the reference's. A top-k of 1 is greedy."""

    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250

    def __post_init__(self) -> None:
        low, high = TEMPERATURES
        temperatures = {"text_temperature": self.text_temperature, "audio_temperature": self.audio_temperature}
        wrong = [
            f"{name} is {value}, but must be {low:g} to {high:g} (a top-k of 1 is greedy)"
            for name, value in temperatures.items()
            if not low <= value <= high
        ] + [
            f"{name} is {value}, but must be a whole number, 1 to {MAX_CANDIDATES}"
            for name, value in (("text_top_k", self.text_top_k), ("audio_top_k", self.audio_top_k))
            if not isinstance(value, Integral) or not 1 <= value <= MAX_CANDIDATES
        ]
        if wrong:
            raise PromptError("; ".join(wrong) + ".")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken. Noise then has no effect."""
        return self.text_top_k == self.audio_top_k == 1


DEFAULT_SAMPLING = Sampling()
GREEDY = Sampling(1.0, 1, 1.0, 1)
