"""Whether the host's memory is enough, asked before it is filled: a process that runs out of it is killed without a word."""

from collections.abc import Mapping

from pplex.runtime.cgroup import available_memory
from pplex.runtime.config import ModelConfig
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.precision import FP32


def short_validation_nbytes(config: ModelConfig, precision: Mapping[str, str]) -> int:
    """Bytes of memory that the validation at the end of a build takes, for graphs on ONNX Runtime.

    It packs weights anew and keeps both; beside them the reference has its depth transformer, and of the temporal one the
    tables, the head and a layer or two, in float32.
    """
    exact = weights_nbytes(config, FP32)
    return 2 * sum(weights_nbytes(config, precision).values()) + exact["depth"] + exact["temporal"] // 8


def lacking_memory(needed: int) -> str | None:
    """What is wrong with asking for `needed` bytes on this machine; None where nothing is, or nobody knows."""
    free = available_memory()
    if free is None or free >= needed:
        return None
    return f"that takes about {needed / 1e9:.0f} GB of memory, of which {free / 1e9:.0f} GB are free here"
