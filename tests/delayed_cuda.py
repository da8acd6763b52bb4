"""The part of cuda.bindings.runtime that CudaDevice calls, on the host's memory. Work runs when the host waits."""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from types import SimpleNamespace

import numpy as np
from cuda_stand_in.bindings import ErrorCode

from pplex.runtime.arrays import Array
from pplex.runtime.cuda_device import ALLOCATION_ALIGNMENT
from pplex.runtime.device import Block, Call, HostDevice
from pplex.runtime.engine import in_turn

GARBAGE = 0xFF  # in new memory: floats are not numbers, indices are -1
OK = ErrorCode.cudaSuccess


@dataclass(eq=False)
class Stream:
    """`capture` holds what is recorded instead of being enqueued."""

    work: deque[Call] = field(default_factory=deque)
    capture: list[Call] | None = None

    def __int__(self) -> int:
        return id(self)


@dataclass(eq=False)
class Event:
    reached_s: float = 0.0

    def reach(self) -> None:
        self.reached_s = perf_counter()


class DelayedCuda:
    """The module. `free`: bytes that can be allocated; `replays` of graphs and `waits` of the host until now.

    copied: the direction of each copy that has run: "up", "down", "within" the device.
    """

    cudaError_t = ErrorCode
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self, free: int) -> None:
        self.free, self.replays, self.waits = free, 0, 0
        self.capture: list[Call] | None = None
        self.copied: list[str] = []
        self._host = HostDevice()
        self._memory: list[Array] = []  # a GPU frees memory only after the enqueued work
        self._device_memory: list[range] = []

    def cudaSetDevice(self, _: int) -> tuple[ErrorCode]:
        return (OK,)

    def cudaGetDeviceProperties(self, _: int) -> tuple[ErrorCode, SimpleNamespace]:
        return OK, SimpleNamespace(name=b"Stand-in GPU", major=8, minor=9, totalGlobalMem=24 * 10**9)

    def cudaGetErrorString(self, code: ErrorCode) -> tuple[ErrorCode, bytes]:
        return OK, code.name.encode()

    # Memory.

    def cudaMalloc(self, nbytes: int) -> tuple[ErrorCode, int]:
        self.free -= nbytes
        code, address = self.cudaHostAlloc(nbytes, 0)
        self._device_memory.append(range(address, address + nbytes))
        return code, address

    def cudaHostAlloc(self, nbytes: int, _: int) -> tuple[ErrorCode, int]:
        self._memory.append(np.full(nbytes + ALLOCATION_ALIGNMENT, GARBAGE, np.uint8))
        return OK, -(-self._memory[-1].ctypes.data // ALLOCATION_ALIGNMENT) * ALLOCATION_ALIGNMENT

    def cudaFree(self, _: int) -> tuple[ErrorCode]:
        return (OK,)

    cudaFreeHost = cudaFree

    def cudaMemGetInfo(self) -> tuple[ErrorCode, int, int]:
        return OK, self.free, self.free

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: Stream) -> tuple[ErrorCode]:
        return self.cudaMemcpy2DAsync(target, 0, source, 0, nbytes, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self, target: int, pitch: int, source: int, source_pitch: int, width: int, height: int, _: int, stream: Stream
    ) -> tuple[ErrorCode]:
        blocks = Block(target, width, height, pitch), Block(source, width, height, source_pitch)
        to_device, from_device = (any(address in part for part in self._device_memory) for address in (target, source))
        direction = "within" if to_device and from_device else "up" if to_device else "down"
        return self.enqueue(partial(self._copy, self._host.copy(*blocks), direction), stream)

    def _copy(self, copy: Call, direction: str) -> None:
        copy()
        self.copied.append(direction)

    def cudaMemsetAsync(self, target: int, value: int, nbytes: int, stream: Stream) -> tuple[ErrorCode]:
        return self.cudaMemset2DAsync(target, 0, value, nbytes, 1, stream)

    def cudaMemset2DAsync(
        self, target: int, pitch: int, value: int, width: int, height: int, stream: Stream
    ) -> tuple[ErrorCode]:
        assert value == 0
        return self.enqueue(partial(self._host.clear, Block(target, width, height, pitch)), stream)

    # Streams and events.

    def enqueue(self, work: Call, stream: Stream) -> tuple[ErrorCode]:
        """What launches a kernel."""
        (stream.work if stream.capture is None else stream.capture).append(work)
        return (OK,)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[ErrorCode, Stream]:
        return OK, Stream()

    def cudaEventCreate(self) -> tuple[ErrorCode, Event]:
        return OK, Event()

    def cudaEventDestroy(self, _: Event) -> tuple[ErrorCode]:
        return (OK,)

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[ErrorCode]:
        return self.enqueue(event.reach, stream)

    def cudaEventElapsedTime(self, first: Event, last: Event) -> tuple[ErrorCode, float]:
        return OK, 1000 * (last.reached_s - first.reached_s)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[ErrorCode]:
        if stream.capture is not None:
            return (ErrorCode.cudaErrorStreamCaptureUnsupported,)
        self.waits += 1
        while stream.work:
            stream.work.popleft()()
        return (OK,)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: Stream, _: int) -> tuple[ErrorCode]:
        assert self.capture is None
        self.capture = stream.capture = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[ErrorCode, list[Call]]:
        assert stream.capture is not None
        captured, stream.capture, self.capture = stream.capture, None, None
        return OK, captured

    def cudaGraphInstantiate(self, graph: list[Call], _: int) -> tuple[ErrorCode, list[Call]]:
        return OK, graph

    def cudaGraphDestroy(self, _: list[Call]) -> tuple[ErrorCode]:
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: list[Call], stream: Stream) -> tuple[ErrorCode]:
        self.replays += 1
        return self.enqueue(partial(in_turn, graph), stream)
