"""The float32 reference: our torch modules with the checkpoint's weights, in the runtime's own loop or all steps at once.

tests/golden holds these modules to what the original code computes; here they are what a bundle is held to.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint
from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.device import Buffer, Call, HostDevice, host_view
from pplex.runtime.engine import Executor
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.precision import FP32


class TorchExecutor:
    """A graph's torch module in place of its engine: the same inputs, outputs and state, in the host's memory."""

    alignment = 1
    capturable = True

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
        """Nothing: there is nothing to prepare."""


def as_float32(bundle: Bundle) -> Bundle:
    """The bundle as the reference reads it: its sizes, tokenizer and voices, every graph in float32."""
    return replace(bundle, precision=FP32)


def torch_backend(checkpoint: Checkpoint, config: ModelConfig) -> Backend:
    """What a Runtime or Stages runs the reference on, for a bundle given by `as_float32`; loads all weights in float32."""
    device = HostDevice()
    modules = {name: weights.load(name, checkpoint, config) for name in FP32}

    def load(bundle: Bundle, slots: int) -> dict[str, Executor]:
        return {name: TorchExecutor(modules[name], spec, device) for name, spec in bundle.specs.items()}

    return Backend(device, load)
