"""Computes the GPU memory of sessions from the graphs' contract, and checks that it fits. Called by `runtime.backend`."""

from collections.abc import Iterable, Mapping

from pplex.runtime.device import buffer_nbytes
from pplex.runtime.engine import fixed_shape
from pplex.runtime.errors import GpuMemoryError
from pplex.runtime.graphs import GraphSpec, TensorSpec

RESERVE = 256 << 20  # bytes for the driver: its context, captured graphs, kernels that are compiled at load

WORKSPACE = 4 << 30  # bytes of scratch for steps of many slots, if the library does not report its size


def slot_nbytes(specs: Iterable[GraphSpec], capacity: int) -> int:
    """Bytes of one slot on a device: rings once, other state twice, and one frame of every input and output."""
    return sum(_slot_nbytes(spec, {"B": 1, "T": 1, "C": capacity}) for spec in specs)


def _slot_nbytes(spec: GraphSpec, sizes: Mapping[str, int]) -> int:
    def nbytes(tensor: TensorSpec) -> int:
        return buffer_nbytes(fixed_shape(tensor.shape, sizes), tensor.dtype)

    second = [state.present for state in spec.state if not state.ring]
    outputs = [tensor for tensor in spec.all_outputs if tensor in spec.outputs or tensor.name in second]
    inputs = [tensor for tensor in spec.all_inputs if (spec.name, tensor.name) != ("depth", "noise")]  # temporal's
    return sum(nbytes(tensor) for tensor in (*inputs, *outputs))


def check_memory(free: int | None, per_slot: int, fixed: int, slots: int, capacity: int) -> None:
    """Raise GpuMemoryError unless `slots` slots and `fixed` bytes more fit into `free` bytes (None: any number).

    The message says how many slots of `capacity` steps fit.
    """
    if free is None or fixed + slots * per_slot + RESERVE <= free:
        return
    fitting = max(0, (free - fixed - RESERVE) // per_slot)
    smaller = "a smaller precision: pplex-export build CHECKPOINT --precision int4 --out BUNDLE"
    raise GpuMemoryError(
        f"{slots} slots of {capacity} steps need {_gb(fixed + slots * per_slot + RESERVE)} of GPU memory: "
        f"{_gb(per_slot)} for each slot and {_gb(fixed + RESERVE)} for all else. "
        f"{_gb(free)} are free, so {fitting} slots fit. "
        + (f"Load the bundle with slots={fitting}, or build {smaller}" if fitting else f"Build {smaller}")
    )


def fitting_slots(free: int | None, per_slot: int, fixed: int, wanted: int) -> int:
    """The number of slots that fit into `free` bytes with `fixed` bytes and WORKSPACE: at least one, at most `wanted`."""
    if free is None:
        return wanted
    return max(1, min(wanted, (free - fixed - RESERVE - WORKSPACE) // per_slot))


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
