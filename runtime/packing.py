"""Tensors packed into one buffer of a device and one host array, so that one copy moves all of them.

Called by `runtime.buffers`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pplex.runtime.arrays import Array
from pplex.runtime.device import Block, Buffer, Device, buffer_nbytes
from pplex.runtime.precision import storage_dtype

Key = tuple[str, str]  # a graph and one of its tensors

ALIGNMENT = 256  # bytes; every tensor starts at a multiple, because executors on a GPU need it


@dataclass(frozen=True)
class PackedSpec:
    """The shape [S, ...] and dtype of a packed tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return buffer_nbytes(self.shape, self.dtype)

    @property
    def row_nbytes(self) -> int:
        return buffer_nbytes(self.shape[1:], self.dtype)


class PackedTensors:
    """Tensors [S, ...], one after the other: `buffers` on the device and `arrays` on the host, by key.

        | codes | position | ... | pcm, row 0 | row 1 | ... |
        |<- small tensors, whole ->|<- B rows ->|            what a batch of B rows copies

    If the device is the host, buffers and arrays share memory.
    """

    def __init__(self, device: Device, specs: Mapping[Key, PackedSpec]):
        """`specs` in the order of the memory."""
        self._specs, self._starts, end = specs, dict[Key, int](), 0
        for key, spec in specs.items():
            self._starts[key] = end
            end += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        self._buffer = device.zeros((end,), "uint8")
        self._array = device.staging(self._buffer)
        self.buffers = {key: self._part_of_buffer(key) for key in specs}
        self.arrays = {key: self._part_of_array(key) for key in specs}

    def span(self, keys: Iterable[Key], batch: int) -> tuple[Block, Block]:
        """The range of the device's memory and of the host's that holds rows 0, ..., batch - 1 of some tensors.

        Only the last tensor is cut after its row batch - 1. Other tensors between the first and the last are included.
        """
        first, *others = sorted(keys, key=self._starts.__getitem__)
        last = others[-1] if others else first
        start, end = self._starts[first], self._starts[last] + batch * self._specs[last].row_nbytes
        device, host = (memory.part(0, start, end - start) for memory in (self._buffer, Buffer.of(self._array)))
        return device, host

    def _part_of_buffer(self, key: Key) -> Buffer:
        spec = self._specs[key]
        return Buffer(self._buffer.address + self._starts[key], spec.shape, spec.dtype, self._buffer.memory)

    def _part_of_array(self, key: Key) -> Array:
        spec, start = self._specs[key], self._starts[key]
        part: Array = self._array[start : start + spec.nbytes]
        return part.view(storage_dtype(spec.dtype)).reshape(spec.shape)
