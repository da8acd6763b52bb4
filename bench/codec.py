"""The codec's exported graphs against our torch modules: same weights, same frames, one run."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pplex.bench.measure import WARM_UP_FRAMES, BenchReport, Timing, machine, peak_memory_mb
from pplex.export import weights
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.export.exporter import export_graph
from pplex.runtime.device import Buffer, HostDevice
from pplex.runtime.engine import Engine
from pplex.runtime.graphs import GraphSpec, graph_specs
from pplex.runtime.ort import OnnxRuntimeExecutor
from pplex.runtime.synthetic_speech import speech_like

Array = npt.NDArray[Any]
Step = Callable[[Array], Array]

BLOCK = 10  # frames one side runs before the other takes its turn, so that both see the same machine


def bench_codec(folder: Path, frames: int, threads: int | None) -> BenchReport:
    """Time encode and decode of `frames` frames on both sides, taking turns every ten frames.

    Raises CheckpointError. The decoder of both sides is given the codes of the torch encoder.
    """
    if threads:
        torch.set_num_threads(threads)
    checkpoint = open_checkpoint(folder)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        size = checkpoint.config.frame_size
        pcm = speech_like(WARM_UP_FRAMES + frames, size, seed=0).reshape(-1, 1, size)
        torch_encode, torch_decode = (_torch_step(checkpoint, name) for name in ("mimi_encode", "mimi_decode"))
        ort_encode, ort_decode = (
            _ort_step(checkpoint, name, Path(scratch), threads) for name in ("mimi_encode", "mimi_decode")
        )
        codes, encode_s = _take_turns(pcm, torch_encode, ort_encode)
        decoded, decode_s = _take_turns(codes[0], torch_decode, ort_decode)
    sides = ("torch eager", "ONNX Runtime")
    timings = {f"encode, {side}": Timing.of(s[WARM_UP_FRAMES:]) for side, s in zip(sides, encode_s, strict=True)}
    timings |= {f"decode, {side}": Timing.of(s[WARM_UP_FRAMES:]) for side, s in zip(sides, decode_s, strict=True)}
    figures = {
        "frames": frames,
        "codes that agree": f"{np.mean(codes[0] == codes[1]):.2%}",
        "largest difference of pcm": f"{np.abs(decoded[0] - decoded[1]).max():.1e}",
        "peak memory MB": peak_memory_mb(),
    }
    return BenchReport(f"codec of {folder.name}", timings, figures, machine(threads, "torch", "onnxruntime"))


def _take_turns(inputs: Array, *steps: Step) -> tuple[list[Array], list[list[float]]]:
    """Outputs [F, ...] and seconds of every side over the same inputs [F, ...]."""
    outputs: list[list[Array]] = [[] for _ in steps]
    seconds: list[list[float]] = [[] for _ in steps]
    for start in range(0, len(inputs), BLOCK):
        for side, step in enumerate(steps):
            for frame in inputs[start : start + BLOCK]:
                began = time.perf_counter()
                output = step(frame)
                seconds[side].append(time.perf_counter() - began)
                outputs[side].append(output.copy())
    return [np.stack(side) for side in outputs], seconds


def _torch_step(checkpoint: Checkpoint, name: str) -> Step:
    module, spec = weights.load(name, checkpoint), graph_specs(checkpoint.config)[name]
    state = [
        torch.zeros([1 if dim == "B" else int(dim) for dim in s.shape], dtype=getattr(torch, s.dtype))
        for s in spec.state
    ]
    active = torch.ones(1, dtype=torch.bool)

    def step(frame: Array) -> Array:
        result, *state[:] = module(torch.from_numpy(frame[None]), active, *state)
        array: Array = result[0].numpy()
        return array

    return step


def _ort_step(checkpoint: Checkpoint, name: str, scratch: Path, threads: int | None) -> Step:
    spec = graph_specs(checkpoint.config)[name]
    path = export_graph(name, checkpoint, checkpoint.config, scratch)
    device = HostDevice()
    engine = Engine(OnnxRuntimeExecutor(path, spec, device, threads), device, slots=1, sizes={})
    tensors = {tensor.name: array for tensor, array in _buffers(spec)}
    tensors["active"][...] = True
    source, result = tensors[spec.inputs[0].name], tensors[spec.outputs[0].name]
    call = engine.bind({name: Buffer.of(array) for name, array in tensors.items()}, 0, 1)

    def step(frame: Array) -> Array:
        source[0] = frame
        call()
        output: Array = result[0]
        return output

    return step


def _buffers(spec: GraphSpec) -> Iterator[tuple[Any, Array]]:
    for tensor in (*spec.inputs, *spec.outputs):
        yield tensor, np.zeros([1 if dim == "B" else int(dim) for dim in tensor.shape], tensor.dtype)
