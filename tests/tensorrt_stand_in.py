"""The part of TensorRT-RTX's Python API that the runtime calls, on the processor: the library itself needs a driver to
load an engine, so the stand-in enforces its rules. A plan is a small JSON file that names an ONNX graph.

Undefined behaviour of the real library is an AssertionError; a refusal is False and an error for the logger.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from devices import QueueDevice

from pplex.engines.profiles import Shape, profiles
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import Buffer, host_view
from pplex.runtime.graphs import GraphSpec

VERSION = "1.7.1.116"
SCRATCH_NBYTES = 4096


def write_plans(bundle: Bundle, folder: Path, slots: int) -> dict[str, dict[str, Any]]:
    """Plans for all graphs of a bundle, and the manifest's engine entries for them."""
    entries = {}
    for graph in bundle.specs:
        plan = {"graph": graph, "path": str(bundle.graph_path(graph)), "slots": slots}
        (folder / f"{graph}.engine").write_text(json.dumps(plan))
        entries[graph] = {
            "kind": "tensorrt-rtx",
            "file": f"{graph}.engine",
            "gpu": "rtx-4090",
            "sm": 89,
            "slots": slots,
            "made_with": f"tensorrt-rtx {VERSION}",
        }
    return entries


def stand_in(bundle: Bundle, device: QueueDevice, capturable: bool = True) -> Any:
    """The module, for the graphs of one bundle on one device."""

    class Runtime:
        error_recorder: Any

        def __init__(self, logger: Logger):
            self.logger = logger  # prints only internal errors

        def deserialize_cuda_engine(self, data: Any) -> "Engine | None":
            try:
                plan = json.loads(bytes(data))
            except ValueError:
                self.error_recorder.report_error("SERIALIZATION", "this is not a plan")
                return None
            sizes = {"slots": plan["slots"], "C": bundle.config.temporal.capacity}
            return Engine(bundle.specs[plan["graph"]], plan["path"], sizes, device, self.error_recorder, capturable)

    return SimpleNamespace(
        __version__=VERSION,
        Logger=Logger,
        IErrorRecorder=type("IErrorRecorder", (), {}),
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager", NONE="none"),
    )


class Logger:
    INTERNAL_ERROR = "INTERNAL_ERROR"

    def __init__(self, severity: str):
        self.severity = severity


@cache
def session_of(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Engine:
    def __init__(
        self, spec: GraphSpec, path: str, sizes: dict[str, int], device: QueueDevice, recorder: Any, capturable: bool
    ):
        self.spec, self.path, self.sizes, self.device, self.recorder = spec, path, sizes, device, recorder
        self.capturable = capturable
        self.device_memory_size_v2 = SCRATCH_NBYTES
        self.contexts: list[Context] = []
        self.names = [tensor.name for tensor in (*spec.all_inputs, *spec.all_outputs)]
        self.num_io_tensors = len(self.names)
        self.profiles = profiles(spec, sizes["C"], sizes["slots"])
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[Shape, Shape, Shape]:
        return self.profiles[profile][name]

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def create_runtime_config(self) -> "Config":
        return Config()

    def create_execution_context(self, how: Any) -> "Context":
        strategy = how.strategy if isinstance(how, Config) else how
        assert strategy == "user managed"
        self.contexts.append(Context(self, how))
        return self.contexts[-1]

    def refuse(self, message: str) -> bool:
        self.recorder.report_error("INVALID", message)
        return False


class Config:
    strategy = dynamic_shapes_kernel_specialization_strategy = None
    kernels: "Kernels | None" = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "Kernels":
        return Kernels()

    def set_runtime_cache(self, kernels: "Kernels") -> bool:
        self.kernels = kernels
        return True


class Kernels:
    """The kernels compiled so far, by their purpose."""

    def __init__(self) -> None:
        self.compiled: set[str] = set()

    def serialize(self) -> bytes | None:
        return json.dumps(sorted(self.compiled)).encode()

    def deserialize(self, data: bytes) -> bool:
        try:
            self.compiled = set(json.loads(data))
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Bound:
    address: int
    shape: tuple[int, ...]


class Context:
    def __init__(self, engine: Engine, how: Any):
        self.engine, self.how = engine, how
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.enqueued = self.captured = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if profile >= self.engine.num_optimization_profiles:
            return self.engine.refuse(f"no profile {profile}")
        self.profile = profile
        return stream == self.engine.device.stream

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert nbytes >= SCRATCH_NBYTES and address % 256 == 0
        self.scratch = address, nbytes

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable and stream == self.engine.device.stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.captured or self.shapes[name] == shape, "the captured graph is for another shape"
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, self.profile)
        for low, length, high in zip(smallest, shape, largest, strict=True):
            if not low <= length <= high:
                return self.engine.refuse(f"{name}: {length} is outside of profile {self.profile}")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self.captured or self.addresses[name] == address, "the captured graph is for another address"
        assert address % 256 == 0, f"{name} is not aligned"
        if name not in self.engine.names:
            return self.engine.refuse(f"no tensor {name}")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, spec = self.engine, self.engine.spec
        assert stream == engine.device.stream
        assert self.scratch is not None and self.addresses.keys() == set(engine.names), "something is not bound"
        assert self.shapes.keys() == {tensor.name for tensor in spec.all_inputs}, "a shape is not set"
        batches = {shape[0] for shape in self.shapes.values()}
        assert len(batches) == 1, "the batch is not the same everywhere"
        for state in spec.state:
            same = self.addresses[state.past] == self.addresses[state.present]
            assert same == state.ring, f"{state.name}: a ring has one address, what is carried has two"
        if engine.device.recording is not None:
            assert self.enqueued, "the first call sets the context up, and cannot be captured"
            self.captured = True
        self.enqueued = True
        if isinstance(self.how, Config) and self.how.dynamic_shapes_kernel_specialization_strategy == "eager":
            assert self.how.kernels is not None
            self.how.kernels.compiled.add(f"{spec.name} {sorted(self.shapes.items())}")
        engine.device.enqueue(partial(self._compute, dict(self.shapes), dict(self.addresses), self.scratch))
        return True

    def _compute(
        self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], scratch: tuple[int, int]
    ) -> None:
        spec, batch = self.engine.spec, next(iter(shapes.values()))[0]
        sizes = {"B": batch, "C": self.engine.sizes["C"]}
        session = session_of(self.engine.path)
        binding = session.io_binding()
        for tensor in spec.all_inputs:
            binding.bind_input(
                tensor.name, "cpu", 0, np.dtype(tensor.dtype).type, shapes[tensor.name], addresses[tensor.name]
            )
        for tensor in spec.all_outputs:
            shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
            binding.bind_output(tensor.name, "cpu", 0, np.dtype(tensor.dtype).type, shape, addresses[tensor.name])
        session.run_with_iobinding(binding)
        host_view(Buffer(scratch[0], (scratch[1],), "uint8", None))[...] = 0xFF  # scratch memory keeps no values
