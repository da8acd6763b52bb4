"""Resamplers of 8 and 16 kHz to and from 24 kHz, for streams: short filters with a delay of 1 to 2 ms.

Called by the protocols whose audio has another rate than the model's. No I/O.

A filter is a windowed sinc, designed at the common multiple of both rates, and used in both directions:

    lower rate   designed at   taps   delay     flat to 0.02 dB   -6 dB   stop band
    8 kHz          24 kHz       73    1.50 ms   up to 3.4 kHz     4 kHz   -58 dB from 4.6 kHz
    16 kHz         48 kHz      121    1.25 ms   up to 7.2 kHz     8 kHz   -63 dB from 8.8 kHz

The length is a compromise. For 8 kHz, a delay of 0.75 ms gives -31 dB, and one of 2 ms -74 dB. The last 600 Hz below 4 kHz
(800 Hz below 8 kHz) are weakened, and contain a mirror image of what is as far above. Telephones send nothing there.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ

_Weights = npt.NDArray[np.float64]
_PIECE = 1920  # samples resampled at once: bounds memory, and numpy multiplies so few in the calling thread
_GROUP = (
    16  # blocks multiplied as one: four times as fast as block by block, and a message of 20 ms has a multiple of them
)


class _Design(NamedTuple):
    """The filter between 24 kHz and a lower rate."""

    low_hz: int
    rate_hz: int  # the common multiple of both rates
    delay: int  # taps on each side of the middle one; whole samples at both rates
    beta: float  # of Kaiser's window: the lowest stop band for this length


_DESIGNS = {design.low_hz: design for design in (_Design(8_000, 24_000, 36, 5.6), _Design(16_000, 48_000, 60, 6.3))}


class Resampler:
    """A stream at another rate. The output is the same, however the input is divided into chunks.

    delay_s: by how much the output is late.

    Every block of input gives a block of output that lasts as long. From 16 to 24 kHz:

        inputs   |x0  x1|x2  x3|x4  x5|      less than a block waits for the next chunk
        outputs  |y0y1y2|y3y4y5|y6y7y8|
    """

    def __init__(self, from_hz: int, to_hz: int):
        """One rate is 24 kHz, the other 8 or 16 kHz. Raises ValueError for others."""
        low_hz = min(from_hz, to_hz)
        if max(from_hz, to_hz) != SAMPLE_RATE_HZ or low_hz not in _DESIGNS:
            rates = " or ".join(f"{rate_hz:,}" for rate_hz in _DESIGNS)
            raise ValueError(
                f"Cannot resample {from_hz:,} to {to_hz:,} Hz: one must be {SAMPLE_RATE_HZ:,} Hz, the other {rates} Hz."
            )
        design = _DESIGNS[low_hz]
        self.delay_s = design.delay / design.rate_hz
        self._block = design.rate_hz // to_hz  # inputs
        self._weights = _weights(design, from_hz, to_hz)
        self._group_weights = _group_weights(design, from_hz, to_hz)
        self.reset()

    def reset(self) -> None:
        """Begin another stream, as if silence came before it."""
        # The inputs that the next outputs need, and the beginning of a block. In float64: numpy's order of addition depends
        # on the chunk's length. Sums in float32 would differ in several bits of the output, these at most in the last one.
        self._recent = np.zeros(len(self._weights) - self._block)

    def process(self, pcm: Pcm) -> Pcm:
        """The samples that a chunk [n] completes, float32. A chunk may have any length, also 0."""
        if len(pcm) > _PIECE:
            return np.concatenate([self.process(pcm[start : start + _PIECE]) for start in range(0, len(pcm), _PIECE)])
        samples = np.concatenate([self._recent, pcm])  # float64
        step, blocks = self._block, (len(samples) - len(self._weights)) // self._block + 1
        groups = blocks // _GROUP
        resampled = _convolved(samples, groups, _GROUP * step, self._group_weights)
        if rest := blocks % _GROUP:
            last = _convolved(samples[groups * _GROUP * step :], rest, step, self._weights)
            resampled = np.concatenate([resampled, last])
        self._recent = samples[blocks * step :]
        return resampled


def _convolved(samples: _Weights, count: int, step: int, weights: _Weights) -> Pcm:
    """The outputs of `count` windows of the samples, `step` apart."""
    strides = (step * samples.itemsize, samples.itemsize)
    windows = np.ndarray((count, len(weights)), samples.dtype, samples, strides=strides)  # overlapping views
    return (np.ascontiguousarray(windows) @ weights).astype(np.float32).ravel()  # a fast product needs a copy


@cache
def _group_weights(design: _Design, from_hz: int, to_hz: int) -> _Weights:
    """As `_weights`, for the outputs of a group of blocks:

            outputs of block 0, 1, ...
    inputs  |w    |
            |w w  |      w: the weights of one block
            |  w w|
            |    w|
    """
    weights, step = _weights(design, from_hz, to_hz), design.rate_hz // to_hz
    window, outputs = weights.shape
    wide = np.zeros((window + step * (_GROUP - 1), outputs * _GROUP))
    for block in range(_GROUP):
        wide[block * step : block * step + window, block * outputs : (block + 1) * outputs] = weights
    return wide


@cache
def _weights(design: _Design, from_hz: int, to_hz: int) -> _Weights:
    """The weights of a block's inputs, and of the inputs before it, in each of the block's outputs: [inputs, outputs]."""
    taps = _taps(design)
    per_input, per_output = design.rate_hz // from_hz, design.rate_hz // to_hz  # distance of neighbours, in taps
    before = (len(taps) - 1) // per_input  # inputs before the block that still matter
    inputs = np.arange(-before, per_output)[:, None]  # a block has as many inputs as `per_output`
    tap = np.arange(per_input)[None, :] * per_output - inputs * per_input
    weights = np.where((tap >= 0) & (tap < len(taps)), taps[tap.clip(0, len(taps) - 1)], 0)
    return weights / weights.sum(axis=0)  # so that a constant passes unchanged


def _taps(design: _Design) -> _Weights:
    """A windowed sinc that passes what is below half of the lower rate: [2 * delay + 1]."""
    at = np.arange(-design.delay, design.delay + 1)
    return np.sinc(at * design.low_hz / design.rate_hz) * np.kaiser(len(at), design.beta)
