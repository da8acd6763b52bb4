"""Compares a step of the language model with the time to read its weights once, and with our torch modules."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pplex.bench.bandwidth import Bandwidth
from pplex.measure.machine import machine
from pplex.measure.memory import peak_memory_mb
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.backend import open_to_run
from pplex.runtime.config import ModelConfig
from pplex.runtime.parameters import step_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.stages import Stages

WARM_UP_STEPS = 3
BLOCK = 5  # steps between two measurements of the bandwidth: a busy machine then slows both
POSITION = 32  # of the timed steps: early in a conversation

Step = Callable[[], None]


def bench_floor(bundle: Path, steps: int, threads: int | None, torch_layers: int) -> BenchReport:
    """Time `steps` steps of both language graphs in one conversation, and of torch modules of their sizes in bfloat16.

    torch runs `torch_layers` layers of the temporal transformer with random weights, and its time is scaled to all layers;
    0 leaves torch out. The graphs, the modules and the bandwidth take turns. Raises BundleError, EngineError.
    """
    opened = open_to_run(bundle, "cpu")
    stages = Stages(opened, slots=1, threads=threads, device="cpu")
    stages.position[0] = POSITION
    backends: dict[str, Step] = {graph: lambda graph=graph: stages.run(graph, 1) for graph in LANGUAGE_GRAPHS}  # type: ignore[misc]
    scale = dict.fromkeys(backends, 1.0)
    if torch_layers:
        whole, layers = opened.config.temporal.layers, min(torch_layers, opened.config.temporal.layers)
        names = f"temporal, torch bfloat16, {layers} layers of {whole}, scaled", "depth, torch bfloat16"
        backends |= zip(names, _torch_steps(opened.config, layers, threads), strict=True)
        scale |= {names[0]: whole / layers, names[1]: 1.0}
    seconds, bandwidths = _take_turns(backends, steps, Bandwidth(threads))
    timings = {name: Timing.of(scale[name] * np.array(taken)) for name, taken in seconds.items()}
    bandwidth = float(np.median(bandwidths))
    figures: dict[str, Any] = {"steps": steps, "read GB/s": round(bandwidth / 1e9, 1)}
    for graph, nbytes in step_nbytes(opened.config, opened.precision, opened.forms).items():
        floor_ms = 1000 * nbytes / bandwidth
        figures |= {
            f"{graph}: {opened.precision[graph]} weights GB": round(nbytes / 1e9, 3),
            f"{graph}: ms to read the weights once": round(floor_ms, 2),
            f"{graph}: step time / time to read the weights": round(timings[graph].median_ms / floor_ms, 2),
        }
        figures |= {
            f"{graph}: torch time / our time": round(timing.median_ms / timings[graph].median_ms, 2)
            for name, timing in timings.items()
            if name.startswith(f"{graph}, torch")
        }
    figures["peak memory MB"] = peak_memory_mb()
    return BenchReport(
        f"floor of {bundle.name}", timings, figures, machine(threads, "onnxruntime", "torch", "numpy"), "ms a step"
    )


def _take_turns(
    backends: Mapping[str, Step], steps: int, bandwidth: Bandwidth
) -> tuple[dict[str, list[float]], list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    bandwidths = list[float]()
    for step in backends.values():
        for _ in range(WARM_UP_STEPS):
            step()
    for start in range(0, steps, BLOCK):
        bandwidths.append(bandwidth.measure())
        for name, step in backends.items():
            step()  # warm the caches, which the other backends have used
            for _ in range(min(BLOCK, steps - start)):
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
    return seconds, bandwidths


def _torch_steps(config: ModelConfig, layers: int, threads: int | None) -> tuple[Step, Step]:
    """A step of `layers` layers of the temporal transformer, with an empty ring, and a step of the depth transformer."""
    import torch
    from torch import nn

    from pplex.export.depth import Depth
    from pplex.export.layers import store_in
    from pplex.export.temporal import TemporalLayer, ring_places
    from pplex.runtime.kv_cache import SHORTEST_RING

    if threads:
        torch.set_num_threads(threads)
    stack = replace(config.temporal, layers=layers)
    temporal, depth = nn.ModuleList(TemporalLayer(stack) for _ in range(layers)), Depth(config, torch.bfloat16)
    store_in(temporal, torch.bfloat16)
    for module in (temporal, depth):
        module.requires_grad_(False)
        for weight in module.parameters():
            weight.uniform_(-0.01, 0.01)
    length = min(SHORTEST_RING, stack.capacity)
    ring = torch.zeros(1, stack.heads, length, stack.head_dim, dtype=torch.bfloat16)
    position = torch.tensor([POSITION % length])
    where = ring_places(position, torch.arange(1), torch.arange(length), stack)
    stream = torch.rand(1, 1, stack.dim).to(torch.bfloat16)
    inputs = (
        torch.rand(1, stack.dim),
        torch.zeros(1, dtype=torch.int64),
        torch.full((1, config.depth_steps), -1),
        torch.rand(1, config.noise_entries),
        *torch.randint(config.noise_entries, (2, 1, config.num_streams)),
        torch.ones(1),
        torch.full((1,), 250),
    )

    @torch.inference_mode()
    def temporal_step() -> None:
        x = stream
        for layer in temporal:
            x, _, _ = layer(x, ring, ring, *where)

    @torch.inference_mode()
    def depth_step() -> None:
        depth(*inputs)

    return temporal_step, depth_step
