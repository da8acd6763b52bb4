"""A device for tests. Like a GPU it has separate memory and delays its work, so tests find a missing copy or wait."""

from functools import partial

import numpy as np

from pplex.runtime.arrays import Array
from pplex.runtime.cuda_device import ALLOCATION_ALIGNMENT
from pplex.runtime.device import Buffer, Call, HostDevice, buffer_nbytes, host_view
from pplex.runtime.gpus import FoundGpu


class QueueDevice(HostDevice):
    """Host memory in place of a GPU's. Enqueued work runs in `synchronize`.

    It has the attributes of a CudaDevice that executors use. `free`: bytes that can be allocated.
    """

    name, captures = "stand-in", True
    stream, gpu = 4711, FoundGpu("Stand-in GPU", 89, 24 * 10**9)

    def __init__(self, free: int = 1 << 40) -> None:
        self.free, self.replays, self.synchronized = free, 0, 0
        self._queue: list[Call] = []
        self._memory: list[object] = []  # a GPU frees memory only after the enqueued work
        self.recording: list[Call] | None = None

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        buffer = super().zeros((ALLOCATION_ALIGNMENT + buffer_nbytes(shape, dtype),), "uint8")
        buffer = Buffer(-(-buffer.address // ALLOCATION_ALIGNMENT) * ALLOCATION_ALIGNMENT, shape, dtype, buffer.memory)
        self.free -= buffer.nbytes
        self._memory.append(buffer.memory)
        return buffer

    def staging(self, buffer: Buffer) -> Array:
        return np.copy(host_view(buffer))

    def enqueue(self, work: Call) -> None:
        (self._queue if self.recording is None else self.recording).append(work)

    def capture(self, work: Call) -> Call:
        assert self.recording is None
        self.recording = []
        work()
        recorded, self.recording = self.recording, None
        return partial(self._replay, recorded)

    def _replay(self, recorded: list[Call]) -> None:
        self.replays += 1
        for work in recorded:
            self.enqueue(work)

    def synchronize(self) -> None:
        assert self.recording is None, "a stream that is captured cannot be waited for"
        self.synchronized += 1
        while self._queue:
            self._queue.pop(0)()

    def free_nbytes(self) -> int | None:
        return self.free
