"""How many conversations fit a GPU: weights, memory per session and scratch, computed before a build.

Called by `doctor`, `engines` and `export`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pplex.measure.tables import readable
from pplex.runtime.config import MIN_CAPACITY, ModelConfig
from pplex.runtime.errors import GpuError
from pplex.runtime.gpus import Gpu
from pplex.runtime.graphs import MAX_SLOTS, MAX_STEPS, graph_specs
from pplex.runtime.memory import slot_nbytes
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import BUILT, storage_dtype

# An estimate, not a measurement, for the CUDA context, kernels, a desktop and the scratch memory of single steps.
RESERVE_NBYTES = 1_500_000_000
_SHRINKING = ("fp16", "int8", "fp8", "int4")  # from the largest weights to the smallest
# The largest call of a priming profile (engines/profiles.py): a chunk in each of two slots.
_PRIMING_SLOTS, _PRIMING_ROWS = 2, 2 * MAX_STEPS
_KERNEL_ENTRIES = 128  # attention kernels read a ring in tiles of as many entries, or of a part of them


@dataclass(frozen=True)
class MemoryPlan:
    """GPU memory in bytes: weights once, state and buffers per slot, scratch of priming once."""

    config: ModelConfig
    precision: Mapping[str, str]
    gpu: Gpu
    capacity: int
    weights_nbytes: int

    @property
    def possible(self) -> bool:
        """Whether the GPU supports every graph's precision."""
        return all(map(self.gpu.runs, self.precision.values()))

    @property
    def session_nbytes(self) -> int:
        return sum(session_nbytes(self.config, self.precision, self.capacity).values()) + self._copies_nbytes

    @property
    def _copies_nbytes(self) -> int:
        """Of a slot with rings in int8: one layer's rings in the activations' dtype, which attention reads on a GPU."""
        stack, activations = self.config.temporal, BUILT[self.precision["temporal"]].activations
        return 2 * self.capacity * stack.dim * storage_dtype(activations).itemsize if self.config.int8_rings else 0

    @property
    def scratch_nbytes(self) -> int:
        """The need of a priming chunk in the temporal graph: that of attention, or of the feed-forward part if it is larger.

        In 16 bits, attention is one kernel that reads copies of both rings. In float32 it is separate kernels, with the
        scores twice and one ring. Measured with TensorRT-RTX: see docs/engines.md.
        """
        stack, activations = self.config.temporal, BUILT[self.precision["temporal"]].activations
        item, rows = storage_dtype(activations).itemsize, _PRIMING_ROWS
        rings = 2 * _PRIMING_SLOTS * stack.dim  # values of k and v for each entry
        scores = rings // 2 + 2 * stack.heads * rows if activations == "float32" else rings
        attention = self.capacity * (item * scores + 4 * rows) + item * rows * 5 * stack.dim  # 4: the mask
        return max(attention, item * rows * (3 * stack.hidden + 5 * stack.dim))

    @property
    def slots(self) -> int | None:
        """Slots that fit, at most a graph's limit; None if the GPU's memory is unknown."""
        if self.gpu.memory_nbytes is None:
            return None
        room = self.gpu.memory_nbytes - self.needed_nbytes(0)
        return min(MAX_SLOTS, max(0, room // self.session_nbytes)) if self.possible else 0

    def needed_nbytes(self, slots: int) -> int:
        """Memory of a GPU that holds `slots` conversations, with RESERVE_NBYTES for all else."""
        return RESERVE_NBYTES + self.weights_nbytes + self.scratch_nbytes + slots * self.session_nbytes

    def check(self, slots: int) -> None:
        """Raises GpuError if `slots` do not fit, and says what would fit, or if the GPU lacks the precision."""
        self.gpu.check_precision(self.precision)
        if self.slots is not None and slots > self.slots:
            has, session = readable(self.gpu.memory_nbytes or 0), readable(self.session_nbytes)
            taken = (self.weights_nbytes, self.scratch_nbytes, RESERVE_NBYTES)
            weights, scratch, reserve = (readable(nbytes) for nbytes in taken)
            raise GpuError(
                f"{self.gpu.title} has {has}. Weights take {weights}, scratch memory {scratch}, and {reserve} stay free. "
                f"The rest holds {self.slots} slots of {session}, not {slots}. {_what_fits(self, slots)}"
            )

    def to_text(self) -> str:
        """One line, for `build` to print before it starts."""
        slots = "an unknown number of slots" if self.slots is None else f"{self.slots} slots"
        gpu = f"{self.gpu.title} (sm_{self.gpu.sm}, {self.gpu.kind})"
        return f"{gpu}: {slots} at {self.capacity} steps of context; {self.parts}"

    @property
    def parts(self) -> str:
        """What the memory is for."""
        weights, session, scratch = (
            readable(nbytes) for nbytes in (self.weights_nbytes, self.session_nbytes, self.scratch_nbytes)
        )
        return f"{weights} of weights, {session} a session, {scratch} of scratch"

    def to_dict(self) -> dict[str, Any]:
        figures = ("capacity", "weights_nbytes", "session_nbytes", "scratch_nbytes", "slots")
        return {
            "gpu": asdict(self.gpu) | {"precisions": self.gpu.precisions},
            "precision": dict(self.precision),
            "possible": self.possible,
            **{name: getattr(self, name) for name in figures},
            "reserve_nbytes": RESERVE_NBYTES,
        }


def plan(
    config: ModelConfig, precision: Mapping[str, str], gpu: Gpu, capacity: int, weights: int | None = None
) -> MemoryPlan:
    """The plan of a model in a precision per graph, with rings of `capacity` steps.

    `weights`: bytes of the weights of a bundle or a build plan; if None, they are computed from the sizes.
    """
    counted = sum(weights_nbytes(config, precision, compiled=True).values()) if weights is None else weights
    return MemoryPlan(config, precision, gpu, capacity, counted)


def session_nbytes(config: ModelConfig, precision: Mapping[str, str], capacity: int) -> dict[str, int]:
    """Bytes of a slot, by graph."""
    specs = graph_specs(config, precision)
    return {graph: slot_nbytes([spec], capacity) for graph, spec in specs.items()}


def capacities(full: int) -> tuple[int, ...]:
    """Lengths of the rings to consider: the full one, about half of it and a quarter."""
    return (full, *(max(MIN_CAPACITY, shorter_capacity(full, part)) for part in (2, 4)))


def shorter_capacity(capacity: int, part: int) -> int:
    """About capacity / part: the next multiple of _KERNEL_ENTRIES, unless the ring is shorter than that."""
    length = capacity // part
    return length if length < _KERNEL_ENTRIES else -(-length // _KERNEL_ENTRIES) * _KERNEL_ENTRIES


def _what_fits(asked: MemoryPlan, slots: int) -> str:
    """Smaller settings that fit the wanted slots, and the number of slots that fits now."""
    smaller = [(f"--precision {name}", _in(asked, name)) for name in _SHRINKING if name in asked.gpu.precisions]
    lengths = [shorter_capacity(asked.capacity, n) for n in (2, 4)]
    shorter = [(f"--capacity {length}", replace(asked, capacity=length)) for length in lengths]
    ways = [f"--slots {asked.slots}"] if asked.slots else []
    for changes in (shorter, smaller):
        ways += [option for option, other in changes if (other.slots or 0) >= slots][:1]
    option, smallest = smaller[-1]
    if not ways and smallest.slots:
        ways = [f"{option} --slots {smallest.slots}"]
    return (
        f"What would fit: {', or '.join(ways)}."
        if ways
        else "Use a GPU with more memory; to compare GPUs: pplex-export plan"
    )


def _in(asked: MemoryPlan, name: str) -> MemoryPlan:
    return plan(asked.config, {**asked.precision, **dict.fromkeys(LANGUAGE_GRAPHS, name)}, asked.gpu, asked.capacity)
