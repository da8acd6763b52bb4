"""The rule for samples in frames, files and the server's raw audio: finite floats with a full scale of 1.0.

Called by `runtime` and `server`.
"""

import numpy as np
import numpy.typing as npt

from pplex.runtime.errors import AudioError

# 24 dB above full scale. Float recordings may exceed 1.0 by the headroom of a mixer or a recorder, and pass unchanged.
# Unscaled integers, even of 8 bits, exceed the limit with the first sound. They are refused, not scaled. The scale
# of a file could be guessed; that of a live frame cannot, because later frames are unknown. Both follow the same rule.
MAX_LEVEL = 16.0
FULL_SCALES = {8: 1 << 7, 16: 1 << 15, 24: 1 << 23, 32: 1 << 31}  # bits of an integer: its value for 1.0


def check_frame(pcm: npt.NDArray[np.floating], frame_size: int) -> npt.NDArray[np.floating]:
    """Return `pcm` if it is one frame, [frame_size] floats. Raises AudioError for another shape or type."""
    if not isinstance(pcm, np.ndarray) or pcm.dtype.kind != "f":
        kind = pcm.dtype if isinstance(pcm, np.ndarray) else type(pcm).__name__
        raise AudioError(f"A frame must be a numpy array of float samples in [-1, 1], not {kind}.")
    if pcm.shape != (frame_size,):
        raise AudioError(f"A frame must be [{frame_size}] samples, mono at 24 kHz; this one is {list(pcm.shape)}.")
    return pcm


def check_samples(pcm: npt.NDArray[np.floating], name: str = "A frame") -> None:
    """Raise AudioError if samples of `pcm` (any shape) are NaN, infinite or beyond `MAX_LEVEL`. The message has `name`."""
    if not pcm.size:
        return
    # min and max of an array with NaN are NaN. isfinite would allocate an array of the same size.
    with np.errstate(invalid="ignore"):
        low, high = float(pcm.min()), float(pcm.max())
    if low >= -MAX_LEVEL and high <= MAX_LEVEL:
        return
    if not np.isfinite([low, high]).all():
        raise AudioError(f"{name} holds samples that are NaN or infinite. Replace them, with zeros for silence.")
    raise AudioError(
        f"{name} holds samples up to {max(-low, high):,.0f}, but full scale is 1.0. {_advice(max(-low, high))}"
    )


def _advice(peak: float) -> str:
    for bits, full_scale in FULL_SCALES.items():
        if peak <= 2 * full_scale:  # twice, because unsigned integers reach that
            return f"They look like {bits}-bit integers that were never scaled: divide them by {full_scale:,}."
    return "Scale them to [-1, 1]."
