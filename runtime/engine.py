"""Running one graph: the interface the loop needs, and ONNX Runtime behind it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pplex.runtime.errors import BundleError
from pplex.runtime.graphs import Dim, GraphSpec, StateSpec

Array = npt.NDArray[Any]
Call = Callable[[], None]


class Engine(Protocol):
    """One graph made ready to run for S slots. It owns the graph's state: row b of every buffer is slot b's."""

    spec: GraphSpec

    def bind(self, tensors: Mapping[str, Array], row: int, batch: int) -> Call:
        """Prepare a call over rows row, ..., row + batch - 1.

        `tensors` are host arrays by input or output name, [batch, ...] each: the call reads and writes them in place,
        every time it is made. Outputs left out are not fetched.
        """

    def reset(self, row: int, steps: int) -> None:
        """Make a slot new. `steps` is how many ring entries it has written, at most."""

    def save(self, row: int, steps: int) -> dict[str, Array]:
        """A copy of the first `steps` ring entries of a slot, by state name."""

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""


class OnnxRuntimeEngine:
    """A graph on ONNX Runtime's CPU provider, its state bound in place.

    Raises BundleError where ONNX Runtime is not installed or refuses the graph.
    """

    def __init__(self, path: Path, spec: GraphSpec, slots: int, sizes: Mapping[str, int], threads: int | None = None):
        self.spec = spec
        self._session = _session(path, threads)
        # zeros: pages that no conversation has reached yet take no memory.
        self.state = {s.name: np.zeros((slots, *_shape(s.shape[1:], sizes)), s.dtype) for s in spec.state}
        # A conv tail or a position has several readers in the graph, which may run after the writer: see StateSpec.
        self._next = {s.name: np.empty_like(self.state[s.name]) for s in spec.state if not s.ring}

    def bind(self, tensors: Mapping[str, Array], row: int, batch: int) -> Call:
        binding = self._session.io_binding()
        for tensor in self.spec.inputs:
            _bind(binding.bind_input, tensor.name, _checked(tensors[tensor.name], tensor.dtype))
        for tensor in self.spec.outputs:
            if tensor.name in tensors:
                _bind(binding.bind_output, tensor.name, _checked(tensors[tensor.name], tensor.dtype))
        carried = []
        for state in self.spec.state:
            past = self.state[state.name][row : row + batch]
            present = past if state.ring else self._next[state.name][row : row + batch]
            _bind(binding.bind_input, state.past, past)
            _bind(binding.bind_output, state.present, present)
            if not state.ring:
                carried.append((past, present))

        # The binding holds addresses only: the closure keeps the arrays behind them alive.
        def call(_keep: Mapping[str, Array] = dict(tensors)) -> None:
            self._session.run_with_iobinding(binding)
            for past, present in carried:
                np.copyto(past, present)

        return call

    def reset(self, row: int, steps: int) -> None:
        # A masked entry weighs nothing, but zero times a stray infinity would not be zero: clear what was written.
        for state in self.spec.state:
            if state.ring:
                self.state[state.name][row, :, :steps] = 0
            else:
                self.state[state.name][row] = 0

    def save(self, row: int, steps: int) -> dict[str, Array]:
        return {s.name: self.state[s.name][row, :, :steps].copy() for s in self._rings()}

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        for state in self._rings():
            self.state[state.name][row, :, : saved[state.name].shape[1]] = saved[state.name]

    def _rings(self) -> list[StateSpec]:
        return [state for state in self.spec.state if state.ring]


def available_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BundleError("This bundle runs on ONNX Runtime: pip install 'pplex-export[cpu]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.log_severity_level = 3
    # The four graphs take turns: an idle one's threads must not spin while the next one works.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error


def _shape(dims: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in dims)


def _checked(array: Array, dtype: str) -> Array:
    assert array.dtype == dtype and array.flags.c_contiguous, (array.dtype, dtype, array.flags)
    return array


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
