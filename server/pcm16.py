"""Samples of 16 bits: the rule for their scale, and a reader of bytes that arrive in pieces of any length.

Called by `server.formats`, `server.g711` and the protocols whose audio is 16-bit PCM. No I/O.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.samples import FULL_SCALES

FULL_SCALE = float(FULL_SCALES[16])  # the 16-bit value of a sample of 1.0
_FULL_SCALE, _LOWEST, _HIGHEST = np.float32(FULL_SCALE), np.float32(-1), np.float32(1 - 1 / FULL_SCALE)
Int16 = npt.NDArray[np.int16]


def quantized(pcm: Pcm) -> Int16:
    """Samples [n] rounded to 16 bits. What exceeds full scale is clipped, and NaN becomes silence."""
    steps = np.maximum(pcm, _LOWEST)
    np.minimum(steps, _HIGHEST, out=steps)
    steps *= _FULL_SCALE
    np.rint(steps, out=steps)
    if np.isnan(steps.sum()):  # one look instead of one for each sample
        np.nan_to_num(steps, copy=False)
    return steps.astype(np.int16)


def scaled(samples: npt.NDArray[np.signedinteger[Any]]) -> Pcm:
    """Samples of 16 bits, [n], as float32 in [-1, 1)."""
    return np.multiply(samples, 1 / _FULL_SCALE, dtype=np.float32)


class PcmBytes:
    """Converts bytes of 16-bit little-endian samples, cut anywhere. Half a sample waits for the next bytes."""

    def __init__(self) -> None:
        self._half = b""

    def push(self, payload: bytes) -> Pcm:
        """The samples that these bytes complete: [n] float32, perhaps none."""
        if self._half:
            payload = self._half + payload
        whole = len(payload) // 2 * 2  # bytes
        self._half = payload[whole:]
        return scaled(np.frombuffer(payload, "<i2", whole // 2))

    def reset(self) -> None:
        """Forget the half sample, for another stream."""
        self._half = b""
