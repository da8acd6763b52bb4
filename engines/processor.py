"""How much memory a bundle takes on a processor, with ONNX Runtime: computed before a build from measured ratios.

Called by `engines.choice`, `engines.plan_report` and `doctor.sizes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pplex.engines.plan import RESERVE_NBYTES, session_nbytes
from pplex.measure.tables import readable
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import Forms
from pplex.runtime.graphs import MAX_SLOTS
from pplex.runtime.parameters import prepared_nbytes, weights_nbytes
from pplex.runtime.precision import BUILT, FP32, Precision

BASE_NBYTES = 10**8  # Python and its libraries, beside the weights
# Bytes in memory for a byte of weights, as docs/performance.md measured them. Weights in blocks (int8, int4) and in float32
# are stored once, in ONNX Runtime's own layout. It computes float16 (and fp8) in float32, and keeps both copies: that ratio
# is for a byte of the same weights in float32.
BLOCKS, FLOAT32, SIXTEEN_BITS = 1.25, 1.1, 1.4


@dataclass(frozen=True)
class ProcessorPlan:
    """Memory in bytes of a model in a precision per graph, with rings of up to `capacity` steps.

    `compiled`: the graphs that engines are compiled from. `forms`: those of a mixed precision.
    """

    config: ModelConfig
    precision: Mapping[str, str]
    capacity: int
    compiled: bool = False
    forms: Forms = field(default_factory=dict)

    @cached_property
    def weights(self) -> Mapping[str, int]:
        return weights_nbytes(self.config, self.precision, self.compiled, self.forms)

    @property
    def weights_nbytes(self) -> int:
        return sum(self.weights.values())

    @property
    def session_nbytes(self) -> int:
        return sum(session_nbytes(self.config, self.precision, self.capacity).values())

    @property
    def loaded_nbytes(self) -> int:
        """After a load, without conversations."""
        exact = weights_nbytes(self.config, FP32)
        named = {graph: BUILT[name] for graph, name in self.precision.items()}
        weights = {graph: exact[graph] if _is_widened(one) else self.weights[graph] for graph, one in named.items()}
        return BASE_NBYTES + sum(int(_ratio(one) * weights[graph]) for graph, one in named.items())

    @property
    def first_nbytes(self) -> int:
        """The largest size during the first load. It converts weights in blocks, and holds both forms until it ends."""
        in_blocks = {graph: name for graph, name in self.precision.items() if BUILT[name].block}
        converted = prepared_nbytes(self.config, in_blocks, self.compiled, self.forms)
        return max(self.loaded_nbytes, BASE_NBYTES + self.weights_nbytes + sum(converted.values()))

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


def _is_widened(precision: Precision) -> bool:
    """Whether ONNX Runtime keeps a float32 copy of the weights beside them on the processor."""
    return precision.activations != "float32" and not precision.block


def _ratio(precision: Precision) -> float:
    return BLOCKS if precision.block else SIXTEEN_BITS if _is_widened(precision) else FLOAT32
