"""An NVIDIA GPU as a device, through cuda-python's bindings of the CUDA runtime. Called by `bench` and `runtime`."""

import weakref
from functools import partial
from typing import Any

from pplex.runtime.arrays import Array
from pplex.runtime.device import Block, Buffer, Call, Mark, buffer_nbytes, host_view
from pplex.runtime.errors import GpuError, GpuMemoryError
from pplex.runtime.gpus import FoundGpu
from pplex.runtime.libraries import load_library

ALLOCATION_ALIGNMENT = 256  # bytes; CUDA guarantees it for every allocation
GPU = 0  # the default GPU of every thread


class _Memory:
    """An allocation. It is freed with the last buffer that refers to it."""

    def __init__(self, address: int, free: Any):
        self.address = address
        # Not at exit: the driver frees everything itself, and may already be unloaded.
        weakref.finalize(self, free, address).atexit = False


class _Event:
    """A timestamp on the stream; the driver frees it with the last reference."""

    def __init__(self, handle: Any, destroy: Any):
        self.handle = handle
        weakref.finalize(self, destroy, handle).atexit = False


class CudaDevice:
    """The first GPU that is visible (CUDA_VISIBLE_DEVICES chooses), and one stream that all work goes through.

    Raises LibraryError if cuda-bindings cannot be loaded, GpuError if no GPU or no driver answers.
    """

    captures = True

    def __init__(self) -> None:
        self._cuda = _library()
        self._do("cudaSetDevice", GPU)
        self.gpu = self._describe()
        self.name = self.gpu.name
        # Not the default stream: it waits for all other streams.
        self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.stream = int(self._stream)  # its address

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        nbytes = buffer_nbytes(shape, dtype)
        address = int(self._call("cudaMalloc", nbytes))
        buffer = Buffer(address, shape, dtype, _Memory(address, self._cuda.cudaFree))
        self.clear(buffer.whole)
        return buffer

    def staging(self, buffer: Buffer) -> Array:
        # Pinned: the driver would copy other memory through small staging buffers.
        address = int(self._call("cudaHostAlloc", buffer.nbytes, self._cuda.cudaHostAllocDefault))
        pinned = Buffer(address, buffer.shape, buffer.dtype, _Memory(address, self._cuda.cudaFreeHost))
        self.copy(pinned.whole, buffer.whole)()
        self.synchronize()
        return host_view(pinned)

    def copy(self, target: Block, source: Block) -> Call:
        assert (target.width, target.height) == (source.width, source.height), (target, source)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault  # addresses tell the driver which side is the GPU's
        if target.height == 1:
            return partial(self._enqueue, "cudaMemcpyAsync", target.address, source.address, target.width, kind)
        rows = target.address, target.pitch, source.address, source.pitch, target.width, target.height
        return partial(self._enqueue, "cudaMemcpy2DAsync", *rows, kind)

    def clear(self, target: Block) -> None:
        if target.height == 1:
            self._enqueue("cudaMemsetAsync", target.address, 0, target.width)
        else:
            self._enqueue("cudaMemset2DAsync", target.address, target.pitch, 0, target.width, target.height)

    def capture(self, work: Call) -> Call:
        # Relaxed: the capture must not fail if a buffer of an earlier runtime is freed at the same time.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._do("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self._stream)  # show the error that stopped the work
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._do("cudaGraphDestroy", graph)

        # The graph holds only addresses, so the closure must keep their memory allocated.
        def replay(_keep: Call = work) -> None:
            self._do("cudaGraphLaunch", executable, self._stream)

        weakref.finalize(replay, self._cuda.cudaGraphExecDestroy, executable).atexit = False
        return replay

    def mark(self) -> Mark:
        event = _Event(self._call("cudaEventCreate"), self._cuda.cudaEventDestroy)
        self._do("cudaEventRecord", event.handle, self._stream)
        return event

    def elapsed_ms(self, first: Mark, last: Mark) -> float:
        return float(self._call("cudaEventElapsedTime", first.handle, last.handle))

    def synchronize(self) -> None:
        self._do("cudaStreamSynchronize", self._stream)

    def free_nbytes(self) -> int | None:
        free, _ = self._results("cudaMemGetInfo")
        return int(free)

    def _describe(self) -> FoundGpu:
        return FoundGpu.of(self._call("cudaGetDeviceProperties", GPU))

    def _enqueue(self, function: str, *arguments: Any) -> None:
        """Call a function whose last argument is the stream."""
        self._do(function, *arguments, self._stream)

    def _do(self, function: str, *arguments: Any) -> None:
        self._results(function, *arguments)

    def _call(self, function: str, *arguments: Any) -> Any:
        (result,) = self._results(function, *arguments)
        return result

    def _results(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        """Results of a function of the CUDA runtime; an error code becomes one of our errors."""
        code, *results = getattr(self._cuda, function)(*arguments)
        if code != self._cuda.cudaError_t.cudaSuccess:
            raise _error(self._cuda, function, code)
        return tuple(results)


def _library() -> Any:
    return load_library(
        "cuda.bindings.runtime",
        "The GPU needs cuda-bindings, which is not installed: pip install 'pplex-export[rtx]', or [tensorrt] or [cuda]",
    )


def _error(cuda: Any, function: str, code: Any) -> GpuError:
    said = f"{code.name}: {cuda.cudaGetErrorString(code)[1].decode()}"
    codes = cuda.cudaError_t
    if code in (codes.cudaErrorNoDevice, codes.cudaErrorInsufficientDriver, codes.cudaErrorSystemDriverMismatch):
        return GpuError(
            f"No NVIDIA GPU can be used ({said}). See what nvidia-smi says and install or update the driver; "
            "a bundle of ONNX graphs also runs without one, on the processor."
        )
    if code == codes.cudaErrorMemoryAllocation:
        return GpuMemoryError(
            f"The GPU has no memory left ({function}). Load fewer slots, or end other programs on it."
        )
    return GpuError(f"The GPU driver refused {function} ({said}). Try again; nvidia-smi shows the state of the GPU.")
