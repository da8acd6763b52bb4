"""Checks the host's memory before it fills: the system kills a process that runs out of memory without a message."""

from collections.abc import Mapping

from pplex.runtime.cgroup import available_memory
from pplex.runtime.config import ModelConfig
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.precision import FP32


def short_validation_nbytes(config: ModelConfig, precision: Mapping[str, str]) -> int:
    """Bytes of memory that the validation at the end of a build needs, for graphs on ONNX Runtime.

    ONNX Runtime packs weights and keeps both copies. The reference has its depth transformer in float32, and the tables, the
    head and a layer or two of the temporal transformer.
    """
    exact = weights_nbytes(config, FP32)
    return 2 * sum(weights_nbytes(config, precision).values()) + exact["depth"] + exact["temporal"] // 8


def lacking_memory(needed: int) -> str | None:
    """Why `needed` bytes do not fit in this machine's memory; None if they fit, or if free memory is unknown."""
    free = available_memory()
    if free is None or free >= needed:
        return None
    return f"that needs about {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB are free here"
