"""The float32 reference: our torch modules with the checkpoint's weights, in the runtime's loop or over all steps at once.

`validate` and `bench` compare bundles with these modules; tests/golden compares the modules with the original code.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint
from pplex.export.layers import rope
from pplex.export.temporal import Temporal, TemporalLayer
from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import LIKE_ACTIVATIONS, ModelConfig
from pplex.runtime.device import Buffer, Call, HostDevice, host_view
from pplex.runtime.engine import Executor
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.precision import FP32

Half = Callable[
    [Tensor], Tensor
]  # a half layer (attention or gated block, with its norm): residual stream -> addition to it


class TorchExecutor:
    """A graph's torch module in place of its engine, with the same inputs, outputs and state in the host's memory."""

    alignment = 1
    capturable = True
    fixed_rings = False
    one_thread = False

    def __init__(self, module: nn.Module, spec: GraphSpec, device: HostDevice):
        self.spec, self._module, self._device = spec, module, device

    def bind(self, tensors: Mapping[str, Buffer], repeated: bool) -> Call:
        given = {name: torch.from_numpy(host_view(buffer)) for name, buffer in tensors.items()}
        inputs = [given[tensor.name] for tensor in self.spec.all_inputs]
        outputs = [given.get(tensor.name) for tensor in self.spec.all_outputs]
        return partial(self._device.enqueue, partial(self._run, inputs, outputs))

    @torch.inference_mode()
    def _run(self, inputs: list[Tensor], outputs: list[Tensor | None]) -> None:
        for buffer, result in zip(outputs, self._module(*inputs), strict=True):
            if buffer is not None:
                buffer.copy_(result)

    def save_cache(self) -> None:
        """Does nothing: torch modules have no cache."""


def as_float32(bundle: Bundle) -> Bundle:
    """The bundle that the reference runs: the same sizes, tokenizer and voices, and every graph and ring in float32."""
    return replace(bundle, precision=FP32, config=replace(bundle.config, kv_cache=LIKE_ACTIVATIONS))


def torch_backend(checkpoint: Checkpoint, config: ModelConfig) -> Backend:
    """The reference as the backend of a Runtime or Stages, for a bundle from `as_float32`; loads all weights in float32."""
    device = HostDevice()
    modules = {name: weights.load(name, checkpoint, config) for name in FP32}

    def load(bundle: Bundle, slots: int, spare: int) -> dict[str, Executor]:
        return {name: TorchExecutor(modules[name], spec, device) for name, spec in bundle.specs.items()}

    return Backend(device, load)


class WholeTemporal:
    """The temporal transformer over a whole token history at once, with one layer's weights in memory at a time.

    The result equals stepping through the history, also past the end of a ring of `capacity` steps, because a step reads the
    newest capacity - 1 steps (see layers.readable).
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, steps: int, capacity: int):
        self._config = config
        self._load = weights.PartLoader("temporal", checkpoint, config)
        with torch.device("meta"):
            self._module = Temporal(config)
        for part in ("out_norm.", "text_linear."):
            self._load(getattr(self._module, part[:-1]), part)
        self._place = _place(config, steps, capacity)

    def embed(self, codes: Tensor, embedding: Tensor) -> Tensor:
        """The first layer's input [1, T, dim] for codes [T, 17] and embedding [T, dim]."""
        module = self._module
        self._load(module, "text_emb")
        self._load(module, "audio_emb")
        x: Tensor = module.embed_streams(codes[None]) + embedding
        module.text_emb.data, module.audio_emb.data = torch.empty(0), torch.empty(0)
        return x

    def layers(self) -> Iterator[tuple[Half, Half]]:
        """Each layer as two half layers, attention and gated feed-forward, of a stream [1, T, dim]."""
        for i in range(self._config.temporal.layers):
            with torch.device("meta"):
                layer = TemporalLayer(self._config.temporal)
            self._load(layer, f"layers.{i}.")
            yield partial(self._attend, layer), partial(self._feed, layer)

    def _attend(self, layer: TemporalLayer, x: Tensor) -> Tensor:
        y: Tensor = layer.attention(layer.norm1(x), *self._place)[0]
        return y

    def _feed(self, layer: TemporalLayer, x: Tensor) -> Tensor:
        y: Tensor = layer.gating(layer.norm2(x))
        return y

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden states [T, dim] of the last layer's output [1, T, dim]."""
        hidden: Tensor = self._module.out_norm(x[0])
        return hidden

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, text_card]."""
        logits: Tensor = self._module.text_linear(hidden)
        return logits


def _place(config: ModelConfig, steps: int, capacity: int) -> tuple[Tensor, ...]:
    """The arguments of attention after its input: rings for all steps, write position, mask, rotation angles."""
    stack, start = config.temporal, torch.zeros(1, dtype=torch.int64)
    ring = torch.zeros(1, stack.heads, steps, stack.head_dim)
    age = torch.arange(steps)[:, None] - torch.arange(steps)  # steps from column to row
    visible = (age >= 0) & (age < capacity - 1)
    return ring, ring, start, visible[None, None], *rope(start, torch.arange(steps), stack)
