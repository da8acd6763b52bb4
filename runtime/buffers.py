"""The inputs and outputs of the four graphs: device buffers, host arrays, and copies between them.

Called by `runtime.stages` and `runtime.frame`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array, Tokens
from pplex.runtime.device import Buffer, Call, Device
from pplex.runtime.engine import fixed_shape
from pplex.runtime.graphs import MAX_STEPS, GraphSpec, TensorSpec
from pplex.runtime.packing import Key, PackedSpec, PackedTensors
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS

LOGITS = ("text_logits", "audio_logits")  # outputs that only validation reads
NOISE = ("noise", "noise_offset", "noise_stride")  # inputs that the language graphs share
# Inputs that a call does not upload: the embedding is zero except in forced steps, and the noise tables stay on the device.
STAYING = ("embedding", "noise")

# Inputs that are outputs of an earlier graph: one buffer for both.
_SHARED = {"depth": ("temporal", ("hidden", "text_token", *NOISE)), "mimi_decode": ("mimi_encode", ("active",))}


class FrameBuffers:
    """A buffer [S, ...] and a host array for each input and output. If the device is the host, both share memory.

    All inputs that the host writes are packed, and so are all outputs that it reads: a frame takes one copy of each.
    """

    def __init__(self, specs: Iterable[GraphSpec], device: Device, slots: int, logits: bool):
        """`logits`: keep the logits as outputs, too."""
        self.slots, self._device, self._logits = slots, device, logits
        self._specs = {spec.name: spec for spec in specs}
        self._up, self._down = self._packed(self._inputs(GRAPH_NAMES)), self._packed(self._outputs(GRAPH_NAMES))
        self.by_graph = self._make_buffers()
        self.arrays = self._make_arrays()
        self._forced = {t.name: self._steps(t) for t in self._specs["temporal"].inputs if "T" in t.shape}
        self.forced_arrays = {name: device.staging(buffer) for name, buffer in self._forced.items()}
        for row in range(slots):
            self.upload_noise(row, 0, self.arrays["temporal"]["noise"].shape[1])

    def rows(self, graph: str, row: int, batch: int) -> dict[str, Buffer]:
        """A graph's buffers for slots row, ..., row + batch - 1."""
        return {name: buffer.rows(row, batch) for name, buffer in self.by_graph[graph].items()}

    def transfers(self, graphs: tuple[str, ...], row: int, batch: int) -> tuple[list[Call], list[Call]]:
        """Uploads of the inputs that no earlier graph computes, and downloads of the outputs that the host reads.

        Several graphs run from row 0. They take one copy up and one down, with all rows of the small tensors. In the rows
        that the graphs do not run, these have the host's inputs, and outputs that were downloaded before.
        """
        inputs, outputs = list(self._inputs(graphs)), list(self._outputs(graphs))
        if len(graphs) == 1:
            uploads = [copy for key in inputs for copy in self._copy(*key, row, batch, up=True)]
            return uploads, [copy for key in outputs for copy in self._copy(*key, row, batch, up=False)]
        (target, source), (read, written) = self._up.span(inputs, batch), self._down.span(outputs, batch)
        if target.address == source.address:
            return [], []
        return [self._device.copy(target, source)], [self._device.copy(written, read)]

    def forced_steps(
        self, row: int, codes: Tokens, embedding: npt.NDArray[np.float32]
    ) -> tuple[dict[str, Buffer], list[Call]]:
        """The temporal transformer's buffers for forced steps of one slot, and the uploads of their inputs."""
        buffers, uploads = self.rows("temporal", row, 1), list[Call]()
        for name, given in (("codes", codes), ("embedding", embedding)):
            chunk, array = self._forced[name].rows(0, len(given)), self.forced_arrays[name][: len(given)]
            array[...] = given
            buffers[name] = replace(chunk, shape=(1, *chunk.shape))
            uploads += self._transfer(chunk, array, up=True)
        for name in ("position", "forced_text", "replacement", "text_temperature", "text_top_k"):
            uploads += self._copy("temporal", name, row, 1, up=True)
        return buffers, uploads

    def upload_noise(self, row: int, start: int, count: int) -> None:
        """Copy entries start, ..., start + count - 1 of one slot's table to the device."""
        host, buffer = Buffer.of(self.arrays["temporal"]["noise"]), self.by_graph["temporal"]["noise"]
        if host.address != buffer.address:
            target, source = (side.rows(row, 1).part(1, start, count) for side in (buffer, host))
            self._device.copy(target, source)()
            self._device.synchronize()  # the caller may overwrite the table at once

    def _copy(self, graph: str, name: str, row: int, batch: int, up: bool) -> list[Call]:
        buffer, array = self.by_graph[graph][name], self.arrays[graph][name]
        return self._transfer(buffer.rows(row, batch), array[row : row + batch], up)

    def _transfer(self, buffer: Buffer, array: Array, up: bool) -> list[Call]:
        """The copy between an array and its buffer; none if they share memory."""
        host = Buffer.of(array)
        if host.address == buffer.address:
            return []
        return [self._device.copy(buffer.whole, host.whole) if up else self._device.copy(host.whole, buffer.whole)]

    # What the host and the graphs exchange.

    def _inputs(self, graphs: tuple[str, ...]) -> Iterator[Key]:
        """The inputs that are uploaded before `graphs` run."""
        made = {_first(graph, tensor.name) for graph in graphs for tensor in self._specs[graph].outputs}
        inputs = [_first(graph, t.name) for graph in graphs for t in self._specs[graph].inputs if t.name not in STAYING]
        yield from (key for key in dict.fromkeys(inputs) if key not in made)

    def _outputs(self, graphs: tuple[str, ...]) -> Iterator[Key]:
        """The outputs that are downloaded after `graphs` have run. The hidden state is read after a single graph only."""
        for graph in graphs:
            for name in (t.name for t in self._specs[graph].outputs if self._logits or t.name not in LOGITS):
                if name != "hidden" or len(graphs) == 1:
                    yield graph, name

    def _packed(self, keys: Iterable[Key]) -> PackedTensors:
        """The language graphs' tensors come first, because they also run alone; the largest, the codec's samples, last."""
        specs = {key: PackedSpec(self._shape(self._tensor(*key)), self._tensor(*key).dtype) for key in keys}
        order = sorted(specs, key=lambda key: (key[0] not in LANGUAGE_GRAPHS, specs[key].row_nbytes))
        return PackedTensors(self._device, {key: specs[key] for key in order})

    def _make_buffers(self) -> dict[str, dict[str, Buffer]]:
        made: dict[Key, Buffer] = {**self._up.buffers, **self._down.buffers}
        for graph, tensor in self._tensors():
            key = _first(graph, tensor.name)
            if key not in made:
                made[key] = self._device.zeros(self._shape(tensor), tensor.dtype)
        return self._by_graph(made)

    def _make_arrays(self) -> dict[str, dict[str, Array]]:
        """Zeros, ones where a graph divides by them, and no replacement: valid values for a slot that is not in use."""
        made: dict[Key, Array] = {**self._up.arrays, **self._down.arrays}
        for graph, tensor in self._tensors():
            key = _first(graph, tensor.name)
            if key not in made:
                made[key] = self._device.staging(self.by_graph[graph][tensor.name])
            if tensor.name == "noise" or tensor.name.endswith("temperature"):
                made[key][...] = 1
            elif tensor.name == "replacement":
                made[key][...] = -1
        return self._by_graph(made)

    def _by_graph(self, made: Mapping[Key, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {graph: {} for graph in self._specs}
        for graph, tensor in self._tensors():
            found[graph][tensor.name] = made[_first(graph, tensor.name)]
        return found

    def _tensors(self) -> Iterator[tuple[str, TensorSpec]]:
        for graph, spec in self._specs.items():
            yield from ((graph, t) for t in spec.inputs + spec.outputs if self._logits or t.name not in LOGITS)

    def _tensor(self, graph: str, name: str) -> TensorSpec:
        spec = self._specs[graph]
        return next(tensor for tensor in spec.inputs + spec.outputs if tensor.name == name)

    def _shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        """All slots [S, ...], with one step."""
        return fixed_shape(tensor.shape, {"B": self.slots, "T": 1})

    def _steps(self, tensor: TensorSpec) -> Buffer:
        """A buffer of one slot's forced steps [MAX_STEPS, ...]."""
        return self._device.zeros((MAX_STEPS, *fixed_shape(tensor.shape[2:], {})), tensor.dtype)


def _first(graph: str, name: str) -> Key:
    """The earlier graph that has the same tensor, or this one."""
    origin, names = _SHARED.get(graph, ("", ()))
    return (origin if name in names else graph), name
