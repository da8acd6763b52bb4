"""Graphs of other sizes than the golden model, including the released codec, against their torch modules, slot by slot."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from torch import nn

from pplex.export import graph
from pplex.export.weights import MODULES
from pplex.runtime.config import CODEBOOKS, RELEASED, ModelConfig
from pplex.runtime.device import Buffer, HostDevice
from pplex.runtime.engine import Engine
from pplex.runtime.graphs import GraphSpec, TensorSpec, graph_specs
from pplex.runtime.ort import OnnxRuntimeExecutor

SLOTS, CAPACITY = 3, 37

CONFIG = ModelConfig.from_arguments(
    {
        "dim": 48, "num_heads": 3, "num_layers": 2, "context": CAPACITY, "text_card": 600, "hidden_scale": 3.3,
        "depformer_dim": 40, "depformer_num_heads": 5, "depformer_num_layers": 1, "depformer_dim_feedforward": 120,
        "delays": [0, 0, *[2] * 7, 0, *[2] * 7],
    },
    {
        "seanet": {"dimension": 24, "n_filters": 3, "ratios": [5, 4, 3, 2], "kernel_size": 5, "residual_kernel_size": 5},
        "transformer": {
            "d_model": 24, "num_heads": 1, "num_layers": 1, "context": 10, "dim_feedforward": 40, "input_dimension": 24,
            "output_dimensions": [24],
        },
        "quantizer": {"dimension": 12, "input_dimension": 24, "output_dimension": 24},
    },
)  # fmt: skip


CASES = {
    **{f"odd {name}": (CONFIG, name, 45) for name in ("mimi_encode", "temporal", "depth", "mimi_decode")},
    "released mimi_encode": (RELEASED, "mimi_encode", 12),
    "released mimi_decode": (RELEASED, "mimi_decode", 12),
}


@dataclass(frozen=True)
class Exported:
    """A graph, its module with random weights, an engine with the same weights, and the steps to compare."""

    spec: GraphSpec
    module: nn.Module
    engine: Engine
    steps: int


@pytest.fixture(params=CASES.values(), ids=CASES)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Exported:
    config, name, steps = request.param
    spec = graph_specs(config)[name]
    torch.manual_seed(0)
    module = MODULES[name](config).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, min(0.3, 1.5 / math.prod(parameter.shape[1:]) ** 0.5))
    weights = {
        name: graph.lazy_weight(name, parameter.clone, ir.DataType.FLOAT, tuple(parameter.shape))
        for name, parameter in module.named_parameters()
    }
    path = tmp_path / f"{name}.onnx"
    graph.save(graph.trace(spec, MODULES[name], config), spec, weights, path)
    device = HostDevice()
    executor = OnnxRuntimeExecutor(path, spec, device, threads=1)
    return Exported(spec, module, Engine(executor, device, SLOTS, {"C": CAPACITY}), steps)


def test_graph_equals_its_module(exported: Exported) -> None:
    spec, engine = exported.spec, exported.engine
    random = np.random.default_rng(0)
    inputs = {t.name: np.zeros(shape(t), t.dtype) for t in spec.inputs}
    outputs = {t.name: np.zeros(shape(t), t.dtype) for t in spec.outputs}
    state = [torch.zeros(array.shape, dtype=getattr(torch, array.dtype)) for array in engine.state.values()]
    call = engine.bind({name: Buffer.of(array) for name, array in {**inputs, **outputs}.items()}, 0, SLOTS)
    differing = 0
    for step in range(exported.steps):
        for name, array in inputs.items():
            array[...] = INPUTS[name](random, array, step)
        expected = exported.module(*(torch.from_numpy(array.copy()) for array in inputs.values()), *state)
        call()
        for (name, got), want in zip(outputs.items(), expected, strict=False):
            if name == "codes":  # one token may be a near tie
                differing += int((got != want.numpy()).sum())
                continue
            assert np.isfinite(got).all() and np.ptp(got) > 0, f"{name} at step {step}"
            np.testing.assert_allclose(got, want.numpy(), rtol=2e-3, atol=2e-4, err_msg=f"{name} at step {step}")
        state = [tensor.clone() for tensor in expected[len(outputs) :]]
    assert differing <= 0.01 * exported.steps * SLOTS * CODEBOOKS


def shape(tensor: TensorSpec) -> list[int]:
    return [{"B": SLOTS, "T": 1}[dim] if isinstance(dim, str) else dim for dim in tensor.shape]


def positions(random: np.random.Generator, array: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    return np.array([step, step, max(0, step - 9)])  # the third slot starts later, and rewrites step 0 until then


def tokens(low: int, card: int) -> Callable[..., npt.NDArray[Any]]:
    return lambda random, array, step: random.integers(low, card, array.shape)


def normal(random: np.random.Generator, array: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    return random.normal(0, 0.5, array.shape)


INPUTS: dict[str, Callable[..., Any]] = {
    "pcm": normal,
    "hidden": normal,
    "embedding": normal,
    "active": lambda random, array, step: [True, step % 3 != 1, step > 9],
    "codes": tokens(0, 600),
    "text_token": tokens(0, 600),
    "forced_text": tokens(0, 600),
    "forced_audio": tokens(0, 2048),
    "replacement": tokens(-1, 600),
    "position": positions,
    "noise": lambda random, array, step: random.exponential(size=array.shape) + 1e-6,
    "noise_offset": tokens(0, 1 << 16),
    "noise_stride": tokens(0, 1 << 16),
    "text_temperature": lambda random, array, step: 0.7,
    "audio_temperature": lambda random, array, step: 0.8,
    "text_top_k": lambda random, array, step: 25,
    "audio_top_k": lambda random, array, step: 250,
}
