"""A device: its memory, and the queue of work on it. The host's is here, a GPU's in cuda_device.py.

Called by `bench`, `runtime` and `validate`.
"""

import ctypes
import math
import mmap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array
from pplex.runtime.precision import storage_dtype

Call = Callable[[], None]
Mark = Any  # a timestamp of the device

_LARGE = 4 << 20  # bytes; larger arrays get untouched pages


@dataclass(frozen=True)
class Block:
    """The memory that one copy reads or writes: `height` runs of `width` bytes; a run starts every `pitch` bytes."""

    address: int
    width: int
    height: int = 1
    pitch: int = 0


@dataclass(frozen=True)
class Buffer:
    """A contiguous array in a device's memory; `dtype` is a numpy name or bfloat16, `memory` keeps it allocated."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    memory: object = field(repr=False, compare=False)

    @classmethod
    def of(cls, array: Array) -> "Buffer":
        """A host array as a buffer, without a copy."""
        assert array.flags.c_contiguous, array.flags
        return cls(array.ctypes.data, array.shape, str(array.dtype), array)

    @property
    def nbytes(self) -> int:
        return buffer_nbytes(self.shape, self.dtype)

    def rows(self, row: int, count: int) -> "Buffer":
        """Entries row, ..., row + count - 1 of the first axis."""
        assert row >= 0 and row + count <= self.shape[0], (row, count, self.shape)
        offset = row * buffer_nbytes(self.shape[1:], self.dtype)
        return Buffer(self.address + offset, (count, *self.shape[1:]), self.dtype, self.memory)

    def part(self, axis: int, start: int, count: int) -> Block:
        """Entries start, ..., start + count - 1 of one axis, and all of the others."""
        assert start >= 0 and start + count <= self.shape[axis], (start, count, self.shape)
        entry = buffer_nbytes(self.shape[axis + 1 :], self.dtype)
        pitch = self.shape[axis] * entry
        return Block(self.address + start * entry, count * entry, math.prod(self.shape[:axis]), pitch)

    @property
    def whole(self) -> Block:
        return Block(self.address, self.nbytes)


class Device(Protocol):
    """Buffers and a queue of work on them.

    Work runs in the order in which it is enqueued, and is done when `synchronize` returns. Until then, the source array of a
    copy must keep its values.
    """

    name: str  # for reports
    captures: bool  # whether `capture` makes calls faster

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Allocate zeroed memory. Raises GpuMemoryError if memory is too small."""

    def staging(self, buffer: Buffer) -> Array:
        """A host array with the shape and values of `buffer`; on the host it is the same memory."""

    def copy(self, target: Block, source: Block) -> Call:
        """Prepare a copy, which each call enqueues. Each side may be memory of the host or of the device."""

    def clear(self, target: Block) -> None:
        """Enqueue zeros."""

    def capture(self, work: Call) -> Call:
        """Record the operations that `work` enqueues, without running them. Each call enqueues all of them at once."""

    def mark(self) -> Mark:
        """Record a timestamp on the queue."""

    def elapsed_ms(self, first: Mark, last: Mark) -> float:
        """Milliseconds between two marks that the queue has passed."""

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""

    def free_nbytes(self) -> int | None:
        """Bytes that can still be allocated; None if the system allocates pages on first use."""


class HostDevice:
    """The host's own memory: no copies, and work runs when it is enqueued."""

    name, captures = "cpu", False

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        array = (
            _untouched(shape, dtype) if buffer_nbytes(shape, dtype) >= _LARGE else np.zeros(shape, storage_dtype(dtype))
        )
        return Buffer(array.ctypes.data, shape, dtype, array)

    def staging(self, buffer: Buffer) -> Array:
        return host_view(buffer)

    def enqueue(self, work: Call) -> None:
        work()

    def copy(self, target: Block, source: Block) -> Call:
        assert (target.width, target.height) == (source.width, source.height), (target, source)
        return partial(self.enqueue, partial(np.copyto, _bytes(target), _bytes(source)))

    def clear(self, target: Block) -> None:
        self.enqueue(partial(_bytes(target).fill, 0))

    def capture(self, work: Call) -> Call:
        return work

    def mark(self) -> Mark:
        taken = list[float]()
        self.enqueue(lambda: taken.append(time.perf_counter()))
        return taken

    def elapsed_ms(self, first: Mark, last: Mark) -> float:
        return 1000 * (last[0] - first[0])

    def synchronize(self) -> None:
        pass

    def free_nbytes(self) -> int | None:
        return None


def _untouched(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros whose pages take memory only when they are first written.

    numpy asks for pages of 2 MB. The ring of one attention head is smaller than a page, so the first step of a conversation
    would take the memory of all later steps.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):  # not Linux
        return np.zeros(shape, storage_dtype(dtype))
    try:
        memory = mmap.mmap(-1, buffer_nbytes(shape, dtype), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{shape} {dtype} do not fit into memory: {error}") from error
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, storage_dtype(dtype), memory)


def host_view(buffer: Buffer) -> Array:
    """A buffer of the host as an array, which keeps the memory allocated."""
    memory: Any = (ctypes.c_uint8 * buffer.nbytes).from_address(buffer.address)
    memory.owner = buffer.memory
    return np.ndarray(buffer.shape, storage_dtype(buffer.dtype), memory)


def buffer_nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * storage_dtype(dtype).itemsize


def _bytes(block: Block) -> npt.NDArray[np.uint8]:
    """A block of the host's memory as [height, width]."""
    span = (block.height - 1) * block.pitch + block.width
    memory: Any = (ctypes.c_uint8 * span).from_address(block.address)
    return np.ndarray((block.height, block.width), np.uint8, memory, strides=(block.pitch, 1))
