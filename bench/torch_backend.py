"""Our torch modules, the source of the graphs, as a backend of a sweep: see sweep.py."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pplex.bench.kernels import launched
from pplex.bench.sweep import SweepOptions, SweepReport, moved_nbytes, sweep
from pplex.bench.torch_device import TorchDevice, gpu_memory
from pplex.export.checkpoint import open_checkpoint
from pplex.export.layers import write_in_place
from pplex.export.weights import MODULES, activations
from pplex.measure.machine import machine
from pplex.runtime.buffers import LOGITS, NOISE, STAYING
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.device import Call
from pplex.runtime.engine import fixed_shape, in_turn
from pplex.runtime.environment import TORCH_CACHES, temporary_cache
from pplex.runtime.errors import EngineError
from pplex.runtime.graphs import GraphSpec, graph_specs
from pplex.runtime.memory import fitting_slots, slot_nbytes
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS
from pplex.runtime.precision import FP32

EAGER, GRAPHS = "eager", "graphs"
COMPILE_MODES = {"compiled": "default", "autotuned": "max-autotune-no-cudagraphs"}
RECOMPILES = 64  # torch's own limit is 8 shapes and modules for one function

CODEC = ("mimi_encode", "mimi_decode")

Copy = tuple[Tensor, Tensor]  # target, source


@temporary_cache(TORCH_CACHES)
def bench_torch(checkpoint: Path, how: str, precision: str, options: SweepOptions) -> SweepReport:
    """Sweep modules of `checkpoint`'s sizes with random weights. Raises CheckpointError, EngineError."""
    config = open_checkpoint(checkpoint).config
    backend = TorchBackend(config, how, precision, options.slots, options.device, checkpoint.name)
    return sweep(backend, options)


class TorchBackend:
    """The four modules on one device: the language model in `precision`, the codec in float32.

    `how`: "eager"; "graphs", which captures each step as a CUDA graph; or a name in COMPILE_MODES, which compiles each step
    and then captures it.

    As in runtime/stages.py, every input, output and state is one tensor for all slots, and a step for fewer slots uses its
    first rows. KV caches are written in place and hold noise for the context steps.
    """

    def __init__(self, config: ModelConfig, how: str, precision: str, slots: int, device: str | None, name: str):
        self.device, self._how, self._config = TorchDevice(device), how, config
        if how == GRAPHS and not self.device.is_gpu:
            raise EngineError("CUDA graphs need a GPU: measure with --how eager or on a GPU.")
        self._precision = {**FP32, **dict.fromkeys(LANGUAGE_GRAPHS, precision)}
        self._specs = graph_specs(config, self._precision)
        self._bandwidth = self.device.bandwidth()
        per_slot = slot_nbytes(self._specs.values(), config.temporal.capacity)
        weights = sum(weights_nbytes(config, self._precision).values())
        self.slots = fitting_slots(self.device.free_nbytes(), per_slot, weights, slots)
        with gpu_memory():
            self._make()
        self.title = f"torch, {how}, at the sizes of {name}"
        packages = machine(None, "torch", "triton", "numpy")
        self.machine: Mapping[str, Any] = {"device": self.device.name, **packages}
        self.figures: Mapping[str, Any] = {"precision": self._precision, "GB/s": round(self._bandwidth / 1e9, 1)}

    def prepare(self, slots: int, context_steps: int) -> Mapping[str, Call]:
        with gpu_memory():
            if slots not in self._transfers:
                self._transfers[slots] = self._copies(slots)
            self._fill_inputs(context_steps)
            _copy(self._transfers[slots][0])
            if slots not in self._calls:
                self._calls[slots] = {graph: self._ready(graph, slots) for graph in GRAPH_NAMES}
            self._fill_rings(slots, context_steps)  # after the first steps, which advance the codec
            self.device.synchronize()
        return dict(self._calls[slots])

    def frame(self, slots: int) -> None:
        _copy(self._transfers[slots][0])
        for call in self._calls[slots].values():
            call()
        _copy(self._transfers[slots][1])
        self.device.synchronize()

    def floor_ms(self, slots: int, context_steps: int) -> Mapping[str, float]:
        moved = moved_nbytes(self._config, self._precision, slots, context_steps)
        return {graph: 1000 * moved[graph] / self._bandwidth for graph in GRAPH_NAMES}

    def kernels(self, calls: Mapping[str, Call]) -> Mapping[str, int]:
        return launched(calls, self.device.synchronize) if self.device.is_gpu else {}

    # Steps.

    def _ready(self, graph: str, slots: int) -> Call:
        """One graph's step, ready to measure. It runs once here, to compile it and to initialise libraries."""
        work = self._work(graph, slots)
        try:
            work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._how not in COMPILE_MODES:
                raise
            raise EngineError(f"torch.compile cannot make {graph} of {slots} slots here: {error}") from error
        return work if self._how == EAGER else self.device.capture(work)

    def _work(self, graph: str, slots: int) -> Call:
        spec = self._specs[graph]
        tensors = {name: tensor[:slots] for name, tensor in self._tensors[graph].items()}
        inputs = [tensors[tensor.name] for tensor in spec.all_inputs]
        outputs = [tensors.get(tensor.name) for tensor in spec.outputs]
        carried = [None if state.ring else tensors[state.past] for state in spec.state]
        step = partial(self._advance, self._modules[graph], inputs, [*outputs, *carried])
        passed_on = {"mimi_encode": self._pass_heard, "depth": self._pass_sampled}.get(graph)
        return step if passed_on is None else partial(in_turn, [step, partial(passed_on, slots)])

    def _pass_heard(self, slots: int) -> None:
        """Pass the user's codes without a delay to the model in the frame that encodes them: see FrameRunner."""
        codes, heard = self._tensors["temporal"]["codes"][:slots, 0], self._tensors["mimi_encode"]["codes"][:slots]
        codes[:, 1 + CODEBOOKS :].copy_(torch.where(self._undelayed, heard, codes[:, 1 + CODEBOOKS :]))

    def _pass_sampled(self, slots: int) -> None:
        """Pass the audio tokens with the longest delay to the decoder in the frame that samples them: see FrameRunner."""
        codes, tokens = self._tensors["mimi_decode"]["codes"][:slots], self._tensors["depth"]["audio_tokens"][:slots]
        codes.copy_(torch.where(self._latest, tokens[:, :CODEBOOKS], codes))

    def _copies(self, slots: int) -> tuple[list[Copy], list[Copy]]:
        """Uploads of inputs that no earlier graph computes, and downloads of outputs that the host reads."""
        uploads, downloads, there = list[Copy](), list[Copy](), set[int]()
        for graph, spec in self._specs.items():
            tensors = self._tensors[graph]
            for tensor in (tensors[t.name] for t in spec.inputs if t.name not in STAYING):
                if id(tensor) not in there:
                    uploads.append((tensor[:slots], self._hosts[id(tensor)][:slots]))
                    there.add(id(tensor))
            for name in (t.name for t in spec.outputs if t.name in tensors):
                there.add(id(tensors[name]))
                if name != "hidden":
                    downloads.append((self._hosts[id(tensors[name])][:slots], tensors[name][:slots]))
        return uploads, downloads

    # Modules and tensors.

    def _make(self) -> None:
        device, specs = self.device, self._specs
        self._modules = {graph: _random_module(graph, self._config, self._precision, device.torch) for graph in specs}
        self._tensors = {graph: self._zeros(spec) for graph, spec in specs.items()}
        self._tensors["depth"] |= {name: self._tensors["temporal"][name] for name in ("hidden", "text_token", *NOISE)}
        self._tensors["mimi_decode"]["active"] = self._tensors["mimi_encode"]["active"]
        exchanged = (
            (g, t.name) for g, spec in specs.items() for t in (*spec.inputs, *spec.outputs) if t.name not in LOGITS
        )
        self._hosts = {id(tensor): device.host(tensor) for tensor in (self._tensors[g][name] for g, name in exchanged)}
        late = [delay == max(1, self._config.max_delay) for delay in self._config.delays[1 : 1 + CODEBOOKS]]
        self._latest = torch.tensor(late, device=device.torch)
        undelayed = [delay == 0 for delay in self._config.delays[1 + CODEBOOKS :]]
        self._undelayed = torch.tensor(undelayed, device=device.torch)
        self._filled = torch.zeros(self.slots, dtype=torch.int64)
        self._transfers: dict[int, tuple[list[Copy], list[Copy]]] = {}
        self._calls: dict[int, dict[str, Call]] = {}
        self._advance = _advance
        if self._how in COMPILE_MODES:
            from torch._inductor import config as inductor  # its import creates a cache

            torch._dynamo.config.recompile_limit = RECOMPILES
            inductor.cpp_cache_precompile_headers = False  # the folder of their cache cannot be chosen
            self._advance = torch.compile(_advance, fullgraph=True, dynamic=False, mode=COMPILE_MODES[self._how])

    def _zeros(self, spec: GraphSpec) -> dict[str, Tensor]:
        """A graph's inputs, past state and outputs for all slots."""
        sizes = {"B": self.slots, "T": 1, "C": self._config.temporal.capacity}
        needed = (t for t in (*spec.all_inputs, *spec.outputs) if t.name not in LOGITS)
        return {
            t.name: torch.zeros(fixed_shape(t.shape, sizes), dtype=getattr(torch, t.dtype), device=self.device.torch)
            for t in needed
        }

    def _fill_rings(self, slots: int, context_steps: int) -> None:
        """Fill KV caches with noise for the context steps, and set the codec's positions. Temporal's is an input."""
        steps = {"temporal": context_steps, "depth": 0} | dict.fromkeys(
            CODEC, self._config.mimi.steps_per_frame * context_steps
        )
        new = int(self._filled[:slots].min()) < context_steps
        for graph, spec in self._specs.items():
            tensors = self._tensors[graph]
            for ring in (state.past for state in spec.state if state.ring and new):
                tensors[ring][:slots, :, : steps[graph]].normal_()
            if graph in CODEC:
                tensors["past.position"][:slots] = steps[graph]
        self._filled[:slots].clamp_(min=context_steps)

    def _fill_inputs(self, context_steps: int) -> None:
        """Fill the inputs of a frame: noise as sound and codes, 250 candidates, nothing forced."""
        card = min(self._config.audio_card, self._config.text_card)
        for graph, spec in self._specs.items():
            for name in (tensor.name for tensor in spec.inputs):
                host = self._hosts[id(self._tensors[graph][name])]
                match name.split("_")[-1]:
                    case "pcm":
                        host.normal_(0, 0.05)
                    case "codes":
                        host.random_(card)
                    case "noise":
                        host.exponential_()
                        self._tensors[graph][name].copy_(host)
                    case "offset" | "stride":
                        host.random_(self._config.noise_entries)
                    case "position":
                        host.fill_(context_steps)
                    case "active" | "temperature":
                        host.fill_(1)
                    case "k":
                        host.fill_(250)
                    case "text" | "audio" | "replacement":
                        host.fill_(-1)


def _advance(module: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor | None]) -> None:
    """Compute a step and copy its results to `targets`. A target is None for rings (written in place) and unread logits."""
    for target, result in zip(targets, module(*inputs), strict=True):
        if target is not None:
            target.copy_(result)


def _copy(copies: Sequence[Copy]) -> None:
    for target, source in copies:
        target.copy_(source, non_blocking=True)


def _random_module(graph: str, config: ModelConfig, precision: Mapping[str, str], device: torch.device) -> nn.Module:
    """A graph's module on `device` that writes its rings in place; random weights keep activations finite."""
    with torch.device("meta"):  # a new module is in float32
        module = MODULES[graph](config, activations(graph, precision)).eval().requires_grad_(False)
    module = module.to_empty(device=device)
    for weight in module.parameters():
        weight.normal_(0, 0.02) if weight.dim() > 1 else weight.fill_(1)
    write_in_place(module)
    return module
