"""The part of cuda.bindings.runtime that CudaDevice calls, on the host's memory. Streams delay their work.

A wait of the host for a stream runs the stream's work. Work of other streams runs as early as its waits for events allow,
and at the host's next wait as late as possible. So without a wait for an event, the result of one of two frames is wrong.
"""

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

GARBAGE = 0xFF  # in new memory: floats are not numbers, indices are -1
OK = ErrorCode.cudaSuccess


@dataclass(eq=False, frozen=True)
class Mark:
    """A place in the work of a stream, or of a branch of a graph."""


@dataclass(frozen=True)
class Step:
    """One piece of work. It may wait for a mark, and may reach one."""

    work: Call | None = None
    waits: Mark | None = None
    reaches: Mark | None = None


@dataclass(eq=False)
class Capture:
    """What is recorded, by stream. The first stream began it."""

    steps: "dict[Stream, list[Step]]"


@dataclass(eq=False)
class Stream:
    steps: deque[Step] = field(default_factory=deque)
    capture: Capture | None = None

    def __int__(self) -> int:
        return id(self)

    def add(self, step: Step) -> None:
        (self.steps if self.capture is None else self.capture.steps[self]).append(step)


@dataclass(eq=False)
class Event:
    mark: Mark | None = None
    capture: Capture | None = None
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
    cudaStreamNonBlocking, cudaHostAllocDefault, cudaEventDefault, cudaEventDisableTiming = 1, 0, 0, 2

    def __init__(self, free: int) -> None:
        self.free, self.replays, self.waits = free, 0, 0
        self.capture: Capture | None = None
        self.copied: list[str] = []
        self._host = HostDevice()
        self._streams: list[Stream] = []
        self._reached: set[Mark] = set()
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
        stream.add(Step(work))
        return (OK,)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[ErrorCode, Stream]:
        self._streams.append(Stream())
        return OK, self._streams[-1]

    def cudaEventCreateWithFlags(self, _: int) -> tuple[ErrorCode, Event]:
        return OK, Event()

    def cudaEventDestroy(self, _: Event) -> tuple[ErrorCode]:
        return (OK,)

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[ErrorCode]:
        event.mark, event.capture = Mark(), stream.capture
        stream.add(Step(event.reach, reaches=event.mark))
        return (OK,)

    def cudaStreamWaitEvent(self, stream: Stream, event: Event, _: int) -> tuple[ErrorCode]:
        """A stream that waits for an event of a capture joins the capture."""
        if stream.capture is not event.capture:
            if event.capture is None:
                return (ErrorCode.cudaErrorStreamCaptureIsolation,)
            if event.capture is not self.capture:
                return (ErrorCode.cudaErrorCapturedEvent,)
            stream.capture = self.capture
            self.capture.steps.setdefault(stream, [])
        if event.mark is not None:
            stream.add(Step(waits=event.mark))
        return (OK,)

    def cudaEventElapsedTime(self, first: Event, last: Event) -> tuple[ErrorCode, float]:
        return OK, 1000 * (last.reached_s - first.reached_s)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[ErrorCode]:
        if stream.capture is not None:
            return (ErrorCode.cudaErrorStreamCaptureUnsupported,)
        self.waits += 1
        others = [other.steps for other in self._streams if other is not stream]
        self._run(stream.steps, others, self._reached)
        return (OK,)

    def _run(self, steps: deque[Step], others: list[deque[Step]], reached: set[Mark]) -> None:
        """Run all `steps`, and others' as early or as late as they may run."""
        queues = [*others, steps] if self.waits % 2 else [steps, *others]
        while steps:
            ready = next(queue for queue in queues if queue and (queue[0].waits is None or queue[0].waits in reached))
            step = ready.popleft()
            if step.work is not None:
                step.work()
            if step.reaches is not None:
                reached.add(step.reaches)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: Stream, _: int) -> tuple[ErrorCode]:
        assert self.capture is None
        self.capture = stream.capture = Capture({stream: []})
        return (OK,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[ErrorCode, Capture | None]:
        capture, self.capture = self.capture, None
        assert capture is not None and next(iter(capture.steps)) is stream
        for captured in capture.steps:
            captured.capture = None
        return (
            (OK, capture) if _is_joined(*capture.steps.values()) else (ErrorCode.cudaErrorStreamCaptureUnjoined, None)
        )

    def cudaGraphInstantiate(self, graph: Capture, _: int) -> tuple[ErrorCode, Capture]:
        return OK, graph

    def cudaGraphDestroy(self, _: Capture) -> tuple[ErrorCode]:
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: Capture, stream: Stream) -> tuple[ErrorCode]:
        self.replays += 1
        return self.enqueue(partial(self._replay, graph), stream)

    def _replay(self, graph: Capture) -> None:
        steps, *others = map(deque, graph.steps.values())
        self._run(steps, others, set())


def _is_joined(steps: list[Step], *others: list[Step]) -> bool:
    """Whether the first stream waits for the last step of all others."""
    waited = {step.waits for step in steps if step.waits is not None}
    return all(other[-1].reaches in waited for other in others)
