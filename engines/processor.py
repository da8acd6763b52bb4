"""How much memory a bundle takes on a processor, with ONNX Runtime: computed before a build from measured ratios.

Called by `engines.choice`, `engines.plan_report` and `doctor.sizes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pplex.engines.plan import RESERVE_NBYTES, session_nbytes
from pplex.measure.tables import readable
from pplex.runtime.config import ModelConfig
from pplex.runtime.graphs import MAX_SLOTS
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.precision import FP32, PRECISIONS, Precision

BASE_NBYTES = 10**8  # Python and its libraries, beside the weights
# Bytes in memory for a byte of weights, as docs/performance.md measured them. ONNX Runtime converts weights in blocks (int8,
# int4) at the first load and caches them; later loads read the cache. It stores float32 weights once, in its own layout.
# It computes float16 (and fp8) in float32, and keeps both copies: this ratio is for a byte of the same weights in float32.
FIRST_BLOCKS, BLOCKS, FLOAT32, SIXTEEN_BITS = 2.1, 1.25, 1.15, 1.4


@dataclass(frozen=True)
class ProcessorPlan:
    """Memory in bytes of a model in a precision per graph, with rings of up to `capacity` steps.

    `compiled`: the graphs that engines are compiled from.
    """

    config: ModelConfig
    precision: Mapping[str, str]
    capacity: int
    compiled: bool = False

    @cached_property
    def weights(self) -> Mapping[str, int]:
        return weights_nbytes(self.config, self.precision, self.compiled)

    @property
    def weights_nbytes(self) -> int:
        return sum(self.weights.values())

    @property
    def session_nbytes(self) -> int:
        return sum(session_nbytes(self.config, self.precision, self.capacity).values())

    @property
    def loaded_nbytes(self) -> int:
        """After a load, without conversations."""
        return self._in_memory(BLOCKS)

    @property
    def first_nbytes(self) -> int:
        """The largest size during the first load."""
        return self._in_memory(FIRST_BLOCKS)

    def needed_nbytes(self, slots: int) -> int:
        """Memory of a machine that loads the bundle and holds `slots` conversations, with RESERVE_NBYTES for all else."""
        return RESERVE_NBYTES + max(self.first_nbytes, self.loaded_nbytes + slots * self.session_nbytes)

    def fitting(self, memory_nbytes: int) -> int:
        """Conversations that a machine with this memory can hold, up to MAX_SLOTS; 0 if it cannot load the bundle."""
        room = memory_nbytes - RESERVE_NBYTES
        slots = max(0, room - self.loaded_nbytes) // self.session_nbytes
        return min(MAX_SLOTS, slots) if room >= self.first_nbytes else 0

    @property
    def parts(self) -> str:
        weights, first = readable(self.weights_nbytes), readable(self.first_nbytes)
        return f"{weights} of weights, {first} during the first load, {readable(self.session_nbytes)} a conversation"

    def to_dict(self) -> dict[str, Any]:
        figures = ("capacity", "weights_nbytes", "first_nbytes", "loaded_nbytes", "session_nbytes")
        return {"precision": dict(self.precision), **{name: getattr(self, name) for name in figures}}

    def _in_memory(self, blocks: float) -> int:
        exact = weights_nbytes(self.config, FP32)
        return BASE_NBYTES + sum(
            int(_ratio(PRECISIONS[name], blocks) * (exact if _is_widened(PRECISIONS[name]) else self.weights)[graph])
            for graph, name in self.precision.items()
        )


def _is_widened(precision: Precision) -> bool:
    """Whether ONNX Runtime keeps a float32 copy of the weights beside them on the processor."""
    return precision.activations != "float32" and not precision.block


def _ratio(precision: Precision, blocks: float) -> float:
    return blocks if precision.block else SIXTEEN_BITS if _is_widened(precision) else FLOAT32
