"""Compares the codec's exported graphs with our torch modules and, if installed, rustymimi: same weights, same frames."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.export.exporter import export_graph
from pplex.measure.conversation import WARM_UP_FRAMES
from pplex.measure.machine import machine
from pplex.measure.memory import peak_memory_mb
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.arrays import Array
from pplex.runtime.config import CODEBOOKS, RELEASED
from pplex.runtime.device import Buffer, HostDevice
from pplex.runtime.engine import Engine
from pplex.runtime.graphs import GraphSpec, graph_specs
from pplex.runtime.ort import OnnxRuntimeExecutor
from pplex.runtime.synthetic_speech import speech_like

Step = Callable[[Array], Array]

TORCH, OURS, PEER = "torch eager", "ONNX Runtime", "rustymimi"
BLOCK = 10  # frames in a turn: backends take turns, so a busy machine slows all of them


def bench_codec(folder: Path, frames: int, threads: int | None) -> BenchReport:
    """Time encode and decode of `frames` frames on all backends, which take turns every ten frames.

    All decoders get the codes of the torch encoder. rustymimi (PyPI) takes part if installed; it uses all processors.
    Raises CheckpointError.
    """
    if threads:
        torch.set_num_threads(threads)
    checkpoint = open_checkpoint(folder)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        size = checkpoint.config.frame_size
        pcm = speech_like(WARM_UP_FRAMES + frames, size, seed=0).reshape(-1, 1, size)
        encoders = {TORCH: _torch_step(checkpoint, "mimi_encode")}
        decoders = {TORCH: _torch_step(checkpoint, "mimi_decode")}
        encoders[OURS] = _ort_step(checkpoint, "mimi_encode", Path(scratch), threads)
        decoders[OURS] = _ort_step(checkpoint, "mimi_decode", Path(scratch), threads)
        if find_spec("rustymimi") and checkpoint.config.mimi == RELEASED.mimi:  # the only sizes it supports
            encoders[PEER], decoders[PEER] = _peer_steps(checkpoint)
        codes, encode_s = _take_turns(pcm, encoders)
        decoded, decode_s = _take_turns(codes[TORCH], decoders)
    timings = {f"encode, {backend}": Timing.of(s[WARM_UP_FRAMES:]) for backend, s in encode_s.items()}
    timings |= {f"decode, {backend}": Timing.of(s[WARM_UP_FRAMES:]) for backend, s in decode_s.items()}
    both = {
        backend: sum(timings[f"{what}, {backend}"].median_ms for what in ("encode", "decode")) for backend in encoders
    }
    figures = {
        "frames": frames,
        **{f"encode and decode, {backend}, ms": round(milliseconds, 2) for backend, milliseconds in both.items()},
        **{
            f"{OURS}: time / time of {backend}": round(both[OURS] / both[backend], 3)
            for backend in both
            if backend != OURS
        },
        "codes that agree": f"{np.mean(codes[TORCH] == codes[OURS]):.2%}",
        "largest difference of pcm": f"{np.abs(decoded[TORCH] - decoded[OURS]).max():.1e}",
        "peak memory MB": peak_memory_mb(),
    }
    return BenchReport(
        f"codec of {folder.name}", timings, figures, machine(threads, "torch", "onnxruntime", "rustymimi")
    )


def _take_turns(inputs: Array, steps: Mapping[str, Step]) -> tuple[dict[str, Array], dict[str, list[float]]]:
    """Outputs [F, ...] and seconds of every backend for the same inputs [F, ...]."""
    outputs: dict[str, list[Array]] = {backend: [] for backend in steps}
    seconds: dict[str, list[float]] = {backend: [] for backend in steps}
    for start in range(0, len(inputs), BLOCK):
        for backend, step in steps.items():
            for frame in inputs[start : start + BLOCK]:
                began = time.perf_counter()
                output = step(frame)
                seconds[backend].append(time.perf_counter() - began)
                outputs[backend].append(output.copy())
    return {backend: np.stack(made) for backend, made in outputs.items()}, seconds


def _peer_steps(checkpoint: Checkpoint) -> tuple[Step, Step]:
    """rustymimi's encode and decode of a frame."""
    import rustymimi

    codec = rustymimi.Tokenizer(str(checkpoint.layout.codec), num_codebooks=CODEBOOKS)

    def encode(frame: Array) -> Array:
        codes: Array = codec.encode_step(frame[None])  # [1, 1, 1920] -> [1, 8, 1]
        return codes[0, :, 0]

    def decode(codes: Array) -> Array:
        pcm: Array = codec.decode_step(codes[None, :, None].astype(np.uint32))
        return pcm[0]

    return encode, decode


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
