"""Single graphs of a bundle, loaded with settings of ONNX Runtime and filled with a frame's inputs: for gpu_pairs.py."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pplex.bench.kernels import launched
from pplex.runtime.arrays import Array
from pplex.runtime.backend import open_to_run
from pplex.runtime.buffers import LOGITS
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.device import Buffer, Call, Device, HostDevice
from pplex.runtime.engine import Engine, Executor, fixed_shape
from pplex.runtime.graphs import TensorSpec
from pplex.runtime.ort import OnnxRuntimeCudaExecutor, OnnxRuntimeExecutor

CUDA_PROVIDER = "CUDAExecutionProvider"
CANDIDATES = 250  # a conversation's top-k of audio


class Variant:
    """Some graphs of a bundle, each with the state of `slots` slots, on a device of their own."""

    def __init__(self, folder: Path, settings: Mapping[str, str], graphs: Sequence[str], slots: int, device: str):
        began, bundle = time.monotonic(), open_to_run(folder, device)
        self._device: Device = HostDevice() if device == "cpu" else CudaDevice()
        self._config, self._noise = bundle.config, np.random.default_rng(0)
        with session_settings(settings):
            executors = {graph: _load(bundle, graph, self._device) for graph in graphs}
        loaded = time.monotonic()
        sizes = {"T": 1, "C": bundle.config.temporal.capacity}
        self._engines = {graph: Engine(one, self._device, slots, sizes) for graph, one in executors.items()}
        self._tensors = {graph: self._buffers(one, {**sizes, "B": slots}) for graph, one in executors.items()}
        self._calls: dict[tuple[str, int], Call] = {}
        filled = time.monotonic()
        for graph in graphs:
            self.prepare(graph, 1)
        self.capacity = bundle.config.temporal.capacity
        self.facts: dict[str, Any] = {
            "bundle": folder.parent.name,
            "settings": dict(settings),
            "load_s": round(loaded - began, 2),
            "first_calls_s": round(time.monotonic() - filled, 2),  # in which cuDNN searches
            "not captured": {
                graph: why for graph, one in executors.items() if (why := getattr(one, "uncaptured", None))
            },
        }

    def prepare(self, graph: str, slots: int, context_steps: int = 0) -> Call:
        """A call that enqueues a frame's run of a graph, after its first run."""
        self._fill(graph, context_steps)
        if (graph, slots) not in self._calls:
            rows = {name: buffer.rows(0, slots) for name, buffer in self._tensors[graph].items()}
            self._calls[graph, slots] = self._engines[graph].bind(rows, 0, slots, repeated=True)
        self._calls[graph, slots]()
        self._device.synchronize()
        return self._calls[graph, slots]

    def turn(self, call: Call, count: int) -> list[float]:
        """Milliseconds of `count` calls, after one more that finds another variant's data in the caches."""
        marks = [self._device.mark()]
        for _ in range(1 + count):
            call()
            marks.append(self._device.mark())
        self._device.synchronize()
        return [self._device.elapsed_ms(*both) for both in pairwise(marks)][1:]

    def kernels(self) -> dict[str, int]:
        """Kernels that a call of each graph launches for one slot; empty if torch cannot count them."""
        if isinstance(self._device, HostDevice):
            return {}
        calls = {graph: self.prepare(graph, 1) for graph in self._engines}
        return launched(calls, self._device.synchronize)

    def _buffers(self, executor: Executor, sizes: Mapping[str, int]) -> dict[str, Buffer]:
        tensors = (t for t in (*executor.spec.inputs, *executor.spec.outputs) if t.name not in LOGITS)
        return {t.name: self._device.zeros(fixed_shape(t.shape, sizes), t.dtype) for t in tensors}

    def _fill(self, graph: str, context_steps: int) -> None:
        """Give every slot the same inputs and rings of noise: zeros would take less power, and so less time."""
        engine = self._engines[graph]
        for spec in engine.spec.inputs:
            buffer = self._tensors[graph][spec.name]
            self._upload(buffer, frame_input(spec, buffer.shape, context_steps, self._config, self._noise))
        for state in engine.spec.state:
            buffer = engine.state[state.name]
            if state.ring:
                ring = self._noise.standard_normal(buffer.shape[1:], np.float32)
                self._upload(buffer.rows(0, 1), as_stored(ring, state.dtype)[None])
                for row in range(1, buffer.shape[0]):
                    self._device.copy(buffer.rows(row, 1).whole, buffer.rows(0, 1).whole)()
            elif state.name == "position":
                steps = context_steps * self._config.mimi.steps_per_frame
                self._upload(buffer, np.full(buffer.shape, steps, state.dtype))
        self._device.synchronize()

    def _upload(self, buffer: Buffer, array: Array) -> None:
        self._device.copy(buffer.whole, Buffer.of(np.ascontiguousarray(array)).whole)()
        self._device.synchronize()  # before the array is freed


def _load(bundle: Bundle, graph: str, device: Device) -> Executor:
    path, spec, precision = bundle.graph_path(graph), bundle.specs[graph], bundle.precision[graph]
    if isinstance(device, CudaDevice):
        return OnnxRuntimeCudaExecutor(path, spec, device, precision, bundle.folder)
    assert isinstance(device, HostDevice)
    return OnnxRuntimeExecutor(path, spec, device, None, precision, bundle.folder)


def frame_input(
    spec: TensorSpec, shape: tuple[int, ...], context_steps: int, config: ModelConfig, noise: np.random.Generator
) -> Array:
    """An input of a frame: noise as sound, codes and hidden state, CANDIDATES candidates, nothing forced."""
    match spec.name.split("_")[-1]:
        case "codes" | "token":
            return noise.integers(0, min(config.audio_card, config.text_card), shape)
        case "noise":
            return noise.standard_exponential(shape, np.float32)
        case "offset" | "stride":
            return noise.integers(0, config.noise_entries // 2, shape) * 2 + 1
        case "position":
            return np.full(shape, context_steps, np.int64)
        case "k":
            return np.full(shape, CANDIDATES, np.int64)
        case "text" | "audio" | "replacement":
            return np.full(shape, -1, np.int64)
        case "active" | "temperature":
            return np.ones(shape, spec.dtype)
        case "embedding":  # zero except in forced steps
            return np.zeros(shape, np.float32)
        case _:
            return noise.normal(0, 0.05, shape).astype(np.float32)


def as_stored(values: Array, dtype: str) -> Array:
    """float32 values as a buffer of `dtype` holds them; bfloat16 as bits, the upper half of a float32's."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(dtype)


@contextmanager
def session_settings(settings: Mapping[str, str]) -> Iterator[None]:
    """ONNX Runtime's sessions that are made meanwhile have these settings in addition to ours, or instead of them.

    A key that begins with `ep.` or `session.` is a session's; any other one is its CUDA provider's.
    """
    import onnxruntime

    entries = {key: value for key, value in settings.items() if key.startswith(("ep.", "session."))}
    of_provider = {key: value for key, value in settings.items() if key not in entries}
    made = onnxruntime.InferenceSession

    def make(model: Any, options: Any, providers: Sequence[Any], **others: Any) -> Any:
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return made(model, options, providers=[_changed(one, of_provider) for one in providers], **others)

    onnxruntime.InferenceSession = make
    try:
        yield
    finally:
        onnxruntime.InferenceSession = made


def _changed(provider: Any, settings: Mapping[str, str]) -> Any:
    name, given = provider if isinstance(provider, tuple) else (provider, {})
    return (name, {**given, **settings}) if name == CUDA_PROVIDER else provider
