"""The device of the backends `bench.torch_backend` and `bench.moshi_backend`: a GPU's current stream, or the processor."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pplex.bench import bandwidth
from pplex.runtime.device import Call
from pplex.runtime.errors import GpuError, GpuMemoryError

WARM_UP_CALLS = 3  # before a capture, as torch's documentation requires: libraries allocate memory and choose kernels


class TorchDevice:
    """The first GPU that torch sees, or the processor: `device` is cuda, cpu, or None for a GPU if torch finds one.

    Turns TF32 off, so that float32 is exact. Raises GpuError if `device` is cuda and torch finds no GPU.
    """

    def __init__(self, device: str | None):
        available = torch.cuda.is_available()
        if device == "cuda" and not available:
            raise GpuError(
                f"torch {torch.__version__} finds no NVIDIA GPU. See what nvidia-smi says, and whether this torch was built "
                "for CUDA; or measure the processor: --device cpu"
            )
        self.is_gpu = available if device is None else device == "cuda"
        self.torch = torch.device("cuda" if self.is_gpu else "cpu")
        self.name = torch.cuda.get_device_name() if self.is_gpu else "cpu"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._pool = torch.cuda.graph_pool_handle() if self.is_gpu else None

    def host(self, like: Tensor) -> Tensor:
        """Zeros in the host's memory like `like`; pinned for a GPU, so that copies are asynchronous."""
        return torch.zeros(like.shape, dtype=like.dtype, pin_memory=self.is_gpu)

    def mark(self) -> Any:
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) if self.is_gpu else 1000 * float(last - first)

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.current_stream().synchronize()

    def free_nbytes(self) -> int | None:
        """Free bytes of the GPU, after torch has released its cache; None for the host."""
        if not self.is_gpu:
            return None
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return int(free)

    def capture(self, work: Call) -> Call:
        """Capture `work` as one CUDA graph, after a few warm-up calls; returns `work` itself on the processor.

        Its inputs and outputs must stay at their addresses. Memory that it allocates must not be used later, because all
        graphs run in turn and share one memory pool.
        """
        if not self.is_gpu:
            return work
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()

        # The graph holds addresses only: the closure keeps the tensors of `work` alive.
        def replay(_keep: Call = work) -> None:
            graph.replay()

        return replay

    def bandwidth(self) -> float:
        """Bytes a second: of a copy on a GPU, read and written; of all processors on a host, read."""
        return self.copy_bandwidth(bandwidth.NBYTES) if self.is_gpu else bandwidth.Bandwidth(None).measure()

    def copy_bandwidth(self, nbytes: int) -> float:
        """Bytes a second, read and written, of a copy within the device's memory."""
        source = torch.randn(nbytes // 4, device=self.torch)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)

        return bandwidth.copied_per_second(self, copy, source.nbytes)


@contextmanager
def gpu_memory() -> Iterator[None]:
    """Turn torch's out-of-memory error into GpuMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        asked = str(error).removeprefix("CUDA out of memory. ").partition(". GPU")[0]
        raise GpuMemoryError(f"The GPU has no memory left: {asked}.") from error
