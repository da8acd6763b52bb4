"""Mixes channels to one without losing a speaker, for files (runtime/audio.py) and stereo Opus (server/opus.py).

The mix is the mean of the channels. The mean can lose the speaker in two ways:

    cancelled   left = -right, a microphone with swapped wires: the mean is silent, so the loudest channel is used
    diluted     eight channels, a speaker in one: the mean is 18 dB quieter, so it is raised to the loudest channel's level
"""

from dataclasses import dataclass
from math import exp, log10, sqrt

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm

Powers = npt.NDArray[np.floating]

# The mean has lost a speaker if its power is below this share of the loudest channel's (10 dB). With one speaker in two or
# three channels, the mean is at most 9.5 dB quieter, and is used.
LOST = 0.1
# The mean is used if it loses at most this share of a recording's sound: a stereo recording may lose a few blocks.
LOST_SHARE = 0.1


def powers(block: Pcm) -> tuple[Powers, float]:
    """The summed squares of each channel [C] of a block [n, C], and of their mean. A constant offset does not count."""
    products = (block.T @ block).astype(np.float64)  # [C, C]: one product is cheaper than squaring the mean
    offsets = block.mean(axis=0, dtype=np.float64)
    products -= len(block) * np.outer(offsets, offsets)
    return products.diagonal(), float(products.sum()) / block.shape[1] ** 2


def is_lost(mean: Powers | float, loudest: Powers | float) -> npt.NDArray[np.bool_] | bool:
    """Whether the mean has lost a speaker, from its power and that of the loudest channel."""
    return mean < LOST * loudest


@dataclass(frozen=True)
class Mix:
    """How channels become one: the mean of all times `gain`, or `channel` alone."""

    channels: int
    gain: float = 1.0
    channel: int | None = None

    @property
    def note(self) -> str:
        """A note for the user; "" for an ordinary mean."""
        if self.channel is not None:
            return f"its {self.channels} channels cancel out when they are mixed: only channel {self.channel + 1} is heard."
        if self.gain != 1:
            return f"the mean of its {self.channels} channels is too quiet: it is raised by {20 * log10(self.gain):.0f} dB."
        return ""

    def apply(self, block: Pcm) -> Pcm:
        """[n] of a block [n, C]."""
        if self.channel is not None:
            return block[:, self.channel].copy()
        mono: Pcm = block.mean(axis=1)
        return mono if self.gain == 1 else mono * np.float32(self.gain)


class MixChooser:
    """Reads the blocks of a recording, then chooses how to mix its channels."""

    def __init__(self, channels: int):
        self._channels = channels
        self._loudest: list[float] = []
        self._means: list[float] = []
        self._total = np.zeros(channels)

    def see(self, block: Pcm) -> None:
        """The next block [n, C]."""
        each, mean = powers(block)
        self._total += each
        self._loudest.append(float(each.max()))
        self._means.append(mean)

    def choose(self) -> Mix:
        """The mean, unless it loses more than `LOST_SHARE` of the sound."""
        loudest, means = np.array(self._loudest), np.array(self._means)
        lost = is_lost(means, loudest)
        if not loudest[lost].sum() > LOST_SHARE * loudest.sum():
            return Mix(self._channels)
        # Power of the channels' sum: at least the power of the loudest channel, except if channels cancel out.
        summed = means[lost].sum() * self._channels**2
        if summed < loudest[lost].sum() / 2:
            equals = self._total > 0.99 * self._total.max()
            return Mix(self._channels, channel=int(equals.argmax()))  # the first of them
        return Mix(self._channels, gain=sqrt(loudest.sum() / means.sum()))


class StreamMix:
    """Mixes a stereo stream: the mean, or the louder channel while the channels cancel out.

    The last half second decides; a change fades in over one block.
    """

    MEAN = (0.5, 0.5)

    def __init__(self, rate_hz: int):
        self._memory = 0.5 * rate_hz  # samples after which a power weighs a third
        self._powers = np.zeros(3)  # left, right, mean
        self._weights = self.MEAN

    @property
    def cancels(self) -> bool:
        """Whether only one channel is used now."""
        return self._weights != self.MEAN

    def push(self, block: Pcm) -> Pcm:
        """[n] of the next block [n, 2], of any scale."""
        (left, right), mean = powers(block)
        self._powers *= exp(-len(block) / self._memory)
        self._powers += left, right, mean
        before, self._weights = self._weights, self._wanted()
        if before == self._weights:
            constant: Pcm = block @ np.array(before, np.float32)
            return constant
        fade = np.linspace(0, 1, len(block), dtype=np.float32)[:, None]
        weights = (1 - fade) * np.array(before, np.float32) + fade * np.array(self._weights, np.float32)
        mixed: Pcm = (block * weights).sum(axis=1)
        return mixed

    def _wanted(self) -> tuple[float, float]:
        left, right, mean = self._powers
        if is_lost(mean, max(left, right)):
            return self._weights if self.cancels else ((1.0, 0.0) if left >= right else (0.0, 1.0))
        is_back = not is_lost(mean, 2 * max(left, right))  # only when it is clear, to avoid going back and forth
        return self.MEAN if is_back else self._weights
