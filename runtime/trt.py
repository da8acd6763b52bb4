"""Runs graphs on TensorRT and TensorRT-RTX with the same code; `TensorRTLibrary` describes the differences.

Called by `runtime.backend`.
"""

import math
from collections.abc import Mapping
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from pplex.runtime.cuda_device import ALLOCATION_ALIGNMENT, CudaDevice
from pplex.runtime.device import Buffer, Call
from pplex.runtime.engine import fixed_shape
from pplex.runtime.errors import EngineError, OutputError
from pplex.runtime.files import check_writable, write_files
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.trt_library import RuntimeErrors, TensorRTLibrary


class Scratch:
    """Scratch memory of contexts that run in turn. Contexts that run at the same time need one each."""

    def __init__(self, device: CudaDevice, nbytes: int):
        self.nbytes = nbytes
        self._buffer = device.zeros((nbytes,), "uint8")
        self.address = self._buffer.address


class LoadedEngine:
    """A loaded engine file, before it has scratch memory.

    Raises EngineError if the library refuses it, or its inputs and outputs are not the graph's.
    """

    def __init__(self, trt: Any, library: TensorRTLibrary, path: Path, spec: GraphSpec):
        self.trt, self.library, self.path, self.spec = trt, library, path, spec
        self.errors = RuntimeErrors(trt)
        self._runtime = trt.Runtime(self.errors.logger)  # must live as long as the engine
        self._runtime.error_recorder = self.errors.recorder  # its engines and their contexts take it over
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise EngineError(
                f"{library.kind} {trt.__version__} cannot load {path}: {self.errors.last()}. "
                "Rebuild it here: pplex-export build CHECKPOINT --gpu local --out BUNDLE"
            )
        self._check_names()

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of scratch of the largest call, without weights, inputs and outputs."""
        return int(self.engine.device_memory_size_v2)

    def _check_names(self) -> None:
        found = {self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)}
        expected = {tensor.name for tensor in (*self.spec.all_inputs, *self.spec.all_outputs)}
        if found != expected:
            raise EngineError(
                f"The inputs and outputs of {self.path.name} are not those of the graph {self.spec.name}: "
                f"{', '.join(sorted(found ^ expected))}. Rebuild it: pplex-export build CHECKPOINT --out BUNDLE"
            )


class TensorRTExecutor:
    """A loaded plan and its execution contexts.

    A repeated call has its own context, because a captured graph is valid only while its context keeps shapes and
    addresses. All other calls share one context per profile, and each call sets its shapes and addresses again.
    """

    alignment = ALLOCATION_ALIGNMENT  # required by IExecutionContext.setTensorAddress
    fixed_rings = True  # the engine's KV cache layer has a fixed length
    one_thread = False

    def __init__(self, plan: LoadedEngine, device: CudaDevice, slots: int, scratch: Scratch, cache: Path):
        """`cache`: the file of compiled kernels, for a library that compiles at load."""
        self.spec, self._plan, self._device, self._slots, self._scratch = plan.spec, plan, device, slots, scratch
        self._repeated: list[Any] = []
        self._shared: dict[int, Any] = {}  # by profile
        self._sinks: dict[str, Buffer] = {}
        self._kernels = _Kernels(plan, cache) if plan.library.jit else None

    @property
    def capturable(self) -> bool:
        return not self._plan.library.jit or all(
            context.is_stream_capturable(self._device.stream) for context in self._repeated
        )

    def bind(self, tensors: Mapping[str, Buffer], repeated: bool) -> Call:
        bound = {**self._unfetched(tensors), **tensors}
        profile = self._profile(tensors)
        if repeated:
            context = self._new_context(profile, repeated)
            self._repeated.append(context)
            self._prepare(context, bound)
            return partial(self._enqueue, context)
        if profile not in self._shared:
            self._shared[profile] = self._new_context(profile, repeated)

        def call() -> None:
            self._prepare(self._shared[profile], bound)
            self._enqueue(self._shared[profile])

        return call

    def save_cache(self) -> None:
        """Save the kernels compiled until now, if the bundle is writable."""
        if self._kernels is not None:
            self._kernels.save()

    def _profile(self, tensors: Mapping[str, Buffer]) -> int:
        """The narrowest profile that allows the shapes of these tensors; the first one if none does."""
        engine, shapes = self._plan.engine, {t.name: tensors[t.name].shape for t in self.spec.all_inputs}
        allowed = dict[
            int, tuple[int, int]
        ]()  # by profile: elements of the largest call, and of the smallest as negative
        for profile in range(engine.num_optimization_profiles):
            sizes = {name: engine.get_tensor_profile_shape(name, profile) for name in shapes}
            if all(
                low <= length <= high
                for name, shape in shapes.items()
                for low, length, high in zip(sizes[name][0], shape, sizes[name][2], strict=True)
            ):
                smallest, _, largest = (sum(map(math.prod, ends)) for ends in zip(*sizes.values(), strict=True))
                allowed[profile] = largest, -smallest
        return min(allowed, key=allowed.__getitem__, default=0)

    def _unfetched(self, tensors: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Buffers for outputs that are not fetched, because TensorRT computes all outputs."""
        for tensor in self.spec.outputs:
            if tensor.name not in tensors and tensor.name not in self._sinks:
                shape = fixed_shape(tensor.shape, {"B": self._slots})
                self._sinks[tensor.name] = self._device.zeros(shape, tensor.dtype)
        return self._sinks

    def _new_context(self, profile: int, repeated: bool) -> Any:
        user_managed = self._plan.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = self._kernels.config(repeated) if self._kernels else user_managed
        context = self._plan.engine.create_execution_context(how)
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
            raise self._error(f"make a context for profile {profile}")
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        return context

    def _prepare(self, context: Any, tensors: Mapping[str, Buffer]) -> None:
        for tensor in self.spec.all_inputs:
            if not context.set_input_shape(tensor.name, tensors[tensor.name].shape):
                raise self._error(f"take {tensor.name} of shape {list(tensors[tensor.name].shape)}")
        for tensor in (*self.spec.all_inputs, *self.spec.all_outputs):
            if not context.set_tensor_address(tensor.name, tensors[tensor.name].address):
                raise self._error(f"bind {tensor.name}")

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise self._error("run the engine")

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self.spec.name}: {self._plan.library.kind} cannot {what}: {self._plan.errors.last()}.")


class _Kernels:
    """Kernels that a library compiles for the shapes that it runs. A file caches them for the next load."""

    def __init__(self, plan: LoadedEngine, path: Path):
        self._plan, self._path = plan, path
        self._cache = plan.engine.create_runtime_config().create_runtime_cache()
        try:
            self._stored = path.read_bytes()
        except OSError:  # missing or not readable: kernels are compiled again
            self._stored = b""
        if self._stored:
            # A file from another GPU, driver or version leaves the cache empty. It is replaced.
            self._cache.deserialize(self._stored)

    def config(self, repeated: bool) -> Any:
        """The configuration of a context. Only repeated calls get kernels for exact shapes, which take long to compile."""
        trt, config = self._plan.trt, self._plan.engine.create_runtime_config()
        strategy = trt.DynamicShapesKernelSpecializationStrategy
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # EAGER compiles at once. If kernels came later, a captured graph would keep the slower general kernels.
        config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER if repeated else strategy.NONE
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        serialized = self._cache.serialize()
        if serialized is None:  # the library refuses, for example without memory: the next load compiles again
            return
        data = bytes(serialized)
        if data == self._stored:
            return
        try:
            self._path.parent.mkdir(exist_ok=True)
            check_writable(self._path)
        except (OSError, OutputError):
            return  # the bundle is read-only or was removed: the next load compiles again
        write_files({str(self._path): data})
        self._stored = data
