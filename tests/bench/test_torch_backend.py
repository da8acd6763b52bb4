"""The other backends: our modules in torch, and the package moshi if it is installed."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from folders import TINY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pplex.bench import bandwidth
from pplex.bench.moshi_backend import LANGUAGE, MoshiBackend
from pplex.bench.sweep import FRAME, BenchBackend, SweepOptions, SweepReport, sweep
from pplex.bench.torch_backend import TorchBackend, _advance, _random_module
from pplex.bench.torch_device import TorchDevice, gpu_memory
from pplex.cli import main
from pplex.export.checkpoint import open_checkpoint
from pplex.export.layers import tensor_scatter, tensor_scatter_
from pplex.export.weights import MODULES
from pplex.runtime.config import ModelConfig
from pplex.runtime.engine import fixed_shape
from pplex.runtime.errors import GpuMemoryError, LibraryError
from pplex.runtime.graphs import GraphSpec, graph_specs
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import FP32

CHECKPOINT = TINY / "checkpoint"


@pytest.fixture(autouse=True)
def little_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "NBYTES", 1 << 24)
    monkeypatch.setattr("pplex.bench.sweep.WARM_UP_FRAMES", 1)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return open_checkpoint(CHECKPOINT).config


def swept(backend: BenchBackend) -> SweepReport:
    return sweep(backend, SweepOptions(backend.slots, (0, 300), frames=2), limit_ms=math.inf)


def assert_complete(report: SweepReport, stages: tuple[str, ...]) -> None:
    places = [(length, slots, stage) for length in (0, 300) for slots in (1, 2) for stage in (*stages, FRAME)]
    assert [(row.context_steps, row.slots, row.stage) for row in report.rows] == places
    for row in report.rows:
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms and row.kernels is None
        assert row.floor_ms is not None and row.floor_ms > 0


def test_eager_rows_are_complete(config: ModelConfig) -> None:
    backend = TorchBackend(config, "eager", "bf16", slots=2, device="cpu", name="tiny")
    assert_complete(swept(backend), GRAPH_NAMES)


def test_stages_pass_their_outputs_on(config: ModelConfig) -> None:
    backend = TorchBackend(config, "eager", "fp32", slots=2, device="cpu", name="tiny")
    backend.prepare(2, 5)
    backend.frame(2)
    tensors, late = backend._tensors, backend._latest
    assert tensors["mimi_encode"]["past.position"].tolist() == [12, 12]  # two for every frame, including the last one
    assert torch.equal(tensors["mimi_decode"]["codes"][:, late], tensors["depth"]["audio_tokens"][:, late])
    heard, read = tensors["mimi_encode"]["codes"], tensors["temporal"]["codes"][:, 0, 9:]
    undelayed = [delay == 0 for delay in config.delays[9:]]
    assert any(undelayed) and torch.equal(read[:, undelayed], heard[:, undelayed])
    pcm, tokens = tensors["mimi_decode"]["pcm"], tensors["depth"]["audio_tokens"]
    for made in (pcm, tokens):
        assert made.any() and torch.equal(backend._hosts[id(made)], made)
    entries = tensors["temporal"]["past.k.0"].any(dim=(0, 1, 3))  # type: ignore[call-overload]
    assert entries.tolist() == [True] * 6 + [False] * (config.temporal.capacity - 6)


def test_codec_position_advances_two_steps_a_frame(config: ModelConfig) -> None:
    backend = TorchBackend(config, "eager", "bf16", slots=1, device="cpu", name="tiny")
    backend.prepare(1, 7)
    assert backend._tensors["mimi_decode"]["past.position"].tolist() == [14]


@pytest.mark.parametrize("graph", ["temporal", "mimi_encode", "mimi_decode"])
def test_rings_written_in_place_change_nothing(config: ModelConfig, graph: str) -> None:
    small = replace(config, temporal=replace(config.temporal, capacity=8))
    spec, steps = graph_specs(small)[graph], 8 + config.mimi.transformer.capacity // 2
    in_place = _random_module(graph, small, FP32, torch.device("cpu"))
    functional = MODULES[graph](small)
    functional.load_state_dict(in_place.state_dict())
    state = [torch.zeros(fixed_shape(s.shape, {"B": 3, "C": 8}), dtype=getattr(torch, s.dtype)) for s in spec.state]
    own, rings = [tensor.clone() for tensor in state], [s.ring for s in spec.state]
    with torch.no_grad():
        for inputs in frames(spec, small, steps):
            outputs, state = results(functional(*inputs, *state), spec)
            found = [torch.zeros_like(output) for output in outputs]
            kept = [None if ring else tensor for ring, tensor in zip(rings, own, strict=True)]
            _advance(in_place, [*inputs, *own], [*found, *kept])
            for expected, actual in zip((*outputs, *state), (*found, *own), strict=True):
                assert torch.equal(expected, actual)


def frames(spec: GraphSpec, config: ModelConfig, steps: int) -> Iterator[list[Tensor]]:
    torch.manual_seed(0)
    sizes = {"B": 3, "T": 1}
    for step in range(steps):
        inputs = {t.name: torch.rand(fixed_shape(t.shape, sizes)).to(getattr(torch, t.dtype)) for t in spec.inputs}
        for name in inputs:
            if name == "codes":
                inputs[name].random_(config.text_card)
            elif name == "active":
                inputs[name][...] = torch.tensor([True, True, step % 2 == 0])
            elif name == "position":
                inputs[name][...] = torch.tensor([step, step + 5, 2 * step])
            elif name.startswith(("forced", "replacement", "text_top_k")):
                inputs[name].fill_(50 if name == "text_top_k" else -1)
        yield list(inputs.values())


def results(made: tuple[Tensor, ...], spec: GraphSpec) -> tuple[list[Tensor], list[Tensor]]:
    return list(made[: len(spec.outputs)]), list(made[len(spec.outputs) :])


def test_rings_are_written_in_place_when_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, update, index = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 2, 4), torch.tensor([6, 1])
    expected = tensor_scatter(ring, update, index)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    written = tensor_scatter_(ring, update, index)
    assert torch.equal(written, expected) and written.data_ptr() == ring.data_ptr()


class OnHost(TorchDispatchMode):
    """Collects the operations on tensors of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
        self.found += [str(function) for tensor in tensors if tensor.device.type == "cpu"]
        return made


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_everything_is_on_the_device_of_the_inputs(config: ModelConfig, graph: str) -> None:
    """Runs on the meta device: it computes nothing, and reading a value is an error."""
    spec, sizes = graph_specs(config)[graph], {"B": 2, "T": 1, "C": config.temporal.capacity}
    with torch.device("meta"):
        module = MODULES[graph](config)
        inputs = [torch.zeros(fixed_shape(t.shape, sizes), dtype=getattr(torch, t.dtype)) for t in spec.all_inputs]
    with torch.no_grad(), OnHost() as host:
        module(*inputs)
    assert not host.found


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["graphs", "compiled"])
def test_captured_steps_equal_the_eager_ones(config: ModelConfig, how: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU.")
    eager, captured = (frame_of(TorchBackend(config, one, "fp32", 2, "cuda", "tiny")) for one in ("eager", how))
    torch.testing.assert_close(captured["hidden"], eager["hidden"])
    assert torch.equal(captured["text_token"], eager["text_token"])


def frame_of(backend: TorchBackend) -> dict[str, Tensor]:
    """The state after a temporal step of two slots, with the same weights and inputs each time."""
    torch.manual_seed(0)
    for module in backend._modules.values():
        for weight in module.parameters():
            weight.normal_(0, 0.02) if weight.dim() > 1 else weight.fill_(1)
    backend.prepare(2, 5)
    backend.frame(2)
    return backend._tensors["temporal"]


def test_cuda_graphs_on_the_processor_are_refused() -> None:
    result = CliRunner().invoke(main, ["bench", "torch", str(CHECKPOINT), "--how", "graphs", "--device", "cpu"])
    assert result.exit_code and "CUDA graphs need a GPU" in result.output


def test_too_little_memory_raises_our_error() -> None:
    with pytest.raises(GpuMemoryError, match=r"^The GPU has no memory left: Tried to allocate 2 GiB\.$"), gpu_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity of ...")


def test_bandwidth_of_a_copy_counts_reads_and_writes() -> None:
    device = TorchDevice("cpu")
    times = iter(range(100))
    device.mark = lambda: next(times)  # type: ignore[method-assign]
    assert device.copy_bandwidth(1 << 20) == 2 << 20


def test_missing_moshi_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moshi.models", None)
    with pytest.raises(LibraryError, match=r"pip install --no-deps moshi==0\.2\.13"):
        MoshiBackend(open_checkpoint(CHECKPOINT), 1, "cpu")


@pytest.mark.skipif(not find_spec("moshi"), reason="moshi is not installed: it pins older versions of our packages")
def test_moshi_rows_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")  # it reads this on import: compiling takes longer than the test
    backend = MoshiBackend(open_checkpoint(CHECKPOINT), slots=2, device="cpu")
    assert_complete(swept(backend), ("mimi_encode", LANGUAGE, "mimi_decode"))
    backend.prepare(2, 300)
    attention = backend._model.transformer.layers[0].self_attn
    backend._speak()
    assert attention._streaming_state.kv_cache.end_offset.tolist() == [301, 301]
