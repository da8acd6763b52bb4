"""The inputs and outputs of the four graphs: device buffers, host arrays, and copies between them.

Called by `runtime.stages` and `runtime.frame`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array, Tokens
from pplex.runtime.device import Buffer, Call, Device
from pplex.runtime.engine import fixed_shape
from pplex.runtime.graphs import MAX_STEPS, GraphSpec, TensorSpec

LOGITS = ("text_logits", "audio_logits")  # outputs that only validation reads
NOISE = ("noise", "noise_offset", "noise_stride")  # inputs that the language graphs share
# Inputs that a call does not upload: the embedding is zero except in forced steps, and the noise tables stay on the device.
STAYING = ("embedding", "noise")

# Inputs that are outputs of an earlier graph: one buffer for both.
_SHARED = {"depth": ("temporal", ("hidden", "text_token", *NOISE)), "mimi_decode": ("mimi_encode", ("active",))}


class FrameBuffers:
    """A buffer [S, ...] and a host array for each input and output. If the device is the host, both share memory."""

    def __init__(self, specs: Iterable[GraphSpec], device: Device, slots: int, logits: bool):
        """`logits`: keep the logits as outputs, too."""
        self.slots, self._device = slots, device
        self._specs = {spec.name: spec for spec in specs}
        self.by_graph = self._make_buffers(logits)
        self.arrays = self._make_arrays()
        self._forced = {t.name: self._steps(t) for t in self._specs["temporal"].inputs if "T" in t.shape}
        self.forced_arrays = {name: device.staging(buffer) for name, buffer in self._forced.items()}
        for row in range(slots):
            self.upload_noise(row, 0, self.arrays["temporal"]["noise"].shape[1])

    def rows(self, graph: str, row: int, batch: int) -> dict[str, Buffer]:
        """A graph's buffers for slots row, ..., row + batch - 1."""
        return {name: buffer.rows(row, batch) for name, buffer in self.by_graph[graph].items()}

    def transfers(self, graphs: tuple[str, ...], row: int, batch: int) -> tuple[list[Call], list[Call]]:
        """Uploads of the inputs that no earlier graph computes, and downloads of the outputs that the host reads."""
        uploads, downloads, made = list[Call](), list[Call](), set[int]()
        for graph in graphs:
            spec, buffers = self._specs[graph], self.by_graph[graph]
            for name in (t.name for t in spec.inputs if t.name not in STAYING):
                if buffers[name].address not in made:
                    uploads += self._copy(graph, name, row, batch, up=True)
                    made.add(buffers[name].address)
            for name in (t.name for t in spec.outputs if t.name in buffers):
                made.add(buffers[name].address)
                if name != "hidden" or len(graphs) == 1:
                    downloads += self._copy(graph, name, row, batch, up=False)
        return uploads, downloads

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
        for name in ("position", "forced_text", "text_temperature", "text_top_k"):
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

    def _make_buffers(self, logits: bool) -> dict[str, dict[str, Buffer]]:
        made = dict[str, dict[str, Buffer]]()
        for graph, spec in self._specs.items():
            origin, names = _SHARED.get(graph, ("", ()))
            wanted = [t for t in spec.inputs + spec.outputs if logits or t.name not in LOGITS]
            made[graph] = {t.name: made[origin][t.name] if t.name in names else self._zeros(t) for t in wanted}
        return made

    def _make_arrays(self) -> Mapping[str, Mapping[str, Array]]:
        """Zeros, or ones where a graph divides by them: valid values for a slot that is not in use."""
        arrays = {b.address: self._device.staging(b) for made in self.by_graph.values() for b in made.values()}
        for made in self.by_graph.values():
            for name, buffer in made.items():
                if name == "noise" or name.endswith("temperature"):
                    arrays[buffer.address][...] = 1
        return {graph: {name: arrays[b.address] for name, b in made.items()} for graph, made in self.by_graph.items()}

    def _zeros(self, tensor: TensorSpec) -> Buffer:
        """A buffer of all slots [S, ...], with one step."""
        return self._device.zeros(fixed_shape(tensor.shape, {"B": self.slots, "T": 1}), tensor.dtype)

    def _steps(self, tensor: TensorSpec) -> Buffer:
        """A buffer of one slot's forced steps [MAX_STEPS, ...]."""
        return self._device.zeros((MAX_STEPS, *fixed_shape(tensor.shape[2:], {})), tensor.dtype)
