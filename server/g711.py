"""G.711, the 8-bit code of telephones: mu-law and A-law, decoded and encoded with tables.

Called by the protocols with telephone audio, which is at 8 kHz (`server.resampling`). No I/O.

A code is a sign and one of 128 steps: 8 segments of 16 steps, each segment twice as coarse as the one before. Steps and
levels follow tables 1 and 2 of ITU-T G.711. A sample on the border of two steps belongs to the upper one, as in the ITU's
own program (G.191).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.server.pcm16 import quantized, scaled

_Steps = npt.NDArray[np.signedinteger[Any]]  # [128], of 16-bit samples, from the quietest step to the loudest
_SEGMENT, _STEP = np.divmod(np.arange(128), 16)
_POSITIVE = 0x80  # the bit of the sign, in both laws


class G711:
    """One of the two laws. Without a state: any bytes can be cut anywhere.

    silence: the code of a sample of 0.
    """

    def __init__(self, lowest: _Steps, levels: _Steps, inverted: int):
        """lowest: the smallest sample of each step. levels: what it decodes to. inverted: bits that are sent inverted."""
        steps = np.searchsorted(lowest, np.arange(1 << 15), side="right") - 1  # [32768], of samples 0, 1, 2, ...
        positive = ((steps | _POSITIVE) ^ inverted).astype(np.uint8)
        negative = positive[::-1] ^ np.uint8(_POSITIVE)  # of samples -32768, ..., -1: the step of -1 is that of 0
        self._codes = np.concatenate([positive, negative])  # [65536], by the sample's bits
        plain = np.arange(256) ^ inverted
        level = levels[plain % _POSITIVE]
        self._samples = scaled(np.where(plain & _POSITIVE, level, -level))  # [256] float32
        self.silence = int(self._codes[0])

    def decode(self, codes: bytes) -> Pcm:
        """The samples of any number of codes: [n] float32 in [-1, 1)."""
        return self._samples[np.frombuffer(codes, np.uint8)]

    def encode(self, pcm: Pcm) -> bytes:
        """One code for each sample of [n]. What exceeds full scale is clipped, and NaN becomes silence."""
        return self._codes[quantized(pcm).view(np.uint16)].tobytes()


def _mu_law() -> G711:
    # Table 2 has units of 4 (14 bits). The steps are those of a code without an offset, moved down by 33.
    lowest = ((16 + _STEP) << (_SEGMENT + 1)) - 33
    levels = ((33 + 2 * _STEP) << _SEGMENT) - 33
    return G711(np.maximum(lowest, 0) * 4, levels * 4, inverted=0x7F)


def _a_law() -> G711:
    # Table 1 has units of 8 (13 bits). Segments 0 and 1 have steps of the same width.
    offset, shift = np.where(_SEGMENT > 0, 16, 0), np.maximum(_SEGMENT - 1, 0)
    lowest = (2 * (offset + _STEP)) << shift
    levels = (2 * (offset + _STEP) + 1) << shift
    return G711(lowest * 8, levels * 8, inverted=0x55)


MU_LAW = _mu_law()  # silence is 0xFF
A_LAW = _a_law()  # silence is 0xD5
