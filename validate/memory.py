"""Checks the host's free memory before long work: the system kills a process without memory, and shows no message.

Called by `validate.short` and `validate.validation`.
"""

from collections.abc import Mapping

from pplex.runtime.cgroup import available_memory
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import Forms
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.precision import FP32


def short_validation_nbytes(config: ModelConfig, precision: Mapping[str, str], forms: Forms) -> int:
    """Bytes of memory that the validation at the end of a build needs, for graphs on ONNX Runtime.

    ONNX Runtime packs weights and keeps both copies. The reference holds these in float32: the depth transformer, and of the
    temporal transformer the tables, the head and a layer or two.
    """
    exact = weights_nbytes(config, FP32)
    return 2 * sum(weights_nbytes(config, precision, forms=forms).values()) + exact["depth"] + exact["temporal"] // 8


def lacking_memory(needed: int) -> str | None:
    """The reason if `needed` bytes do not fit in this machine's memory; None if they fit, or if free memory is unknown."""
    free = available_memory()
    if free is None or free >= needed:
        return None
    return f"that needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free here"
