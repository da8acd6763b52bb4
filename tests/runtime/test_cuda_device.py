"""The GPU as a device: errors without a GPU; memory, copies and captures with one."""

import re
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu import gpu_device, has_gpu

from pplex.runtime import cuda_device
from pplex.runtime.arrays import Array
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.device import Block, Buffer
from pplex.runtime.errors import GpuError, GpuMemoryError, LibraryError

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


def test_a_missing_gpu_or_driver_is_reported() -> None:
    try:
        CudaDevice()
    except GpuError as error:
        assert re.match(r"No NVIDIA GPU can be used \(cudaError.*\)\. See what nvidia-smi says", str(error))
    else:
        pytest.skip("a GPU answers here")


def test_missing_cuda_bindings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(LibraryError, match=r"cuda-bindings, .* pip install 'pplex-export\[rtx\]'"):
        CudaDevice()


@pytest.mark.parametrize(
    "code, error, message",
    [
        ("cudaErrorNoDevice", GpuError, r"No NVIDIA GPU can be used \(cudaErrorNoDevice: no CUDA-capable device"),
        ("cudaErrorMemoryAllocation", GpuMemoryError, r"no memory left \(cudaMalloc\)"),
        (
            "cudaErrorIllegalAddress",
            GpuError,
            r"refused cudaMalloc \(cudaErrorIllegalAddress: an illegal memory access",
        ),
    ],
)
def test_driver_error_codes_are_named(code: str, error: type[GpuError], message: str) -> None:
    refusal = cuda_device._error(runtime, "cudaMalloc", getattr(runtime.cudaError_t, code))
    assert type(refusal) is error
    with pytest.raises(error, match=message):
        raise refusal


BLOCK, ROWS = Block(256, 16), Block(256, 16, 3, 32)
EVENT = SimpleNamespace(handle=runtime.cudaEvent_t())
CALLS: dict[str, Callable[[CudaDevice], Any]] = {
    "describe": lambda device: device._describe(),
    "zeros": lambda device: device.zeros((2, 3), "bfloat16"),
    "staging": lambda device: device.staging(Buffer(256, (2, 3), "float32", None)),
    "copy": lambda device: device.copy(BLOCK, BLOCK)(),
    "copy of rows": lambda device: device.copy(ROWS, ROWS)(),
    "clear": lambda device: device.clear(BLOCK),
    "clear of rows": lambda device: device.clear(ROWS),
    "wait of a stream": lambda device: device._do("cudaStreamWaitEvent", device._second, EVENT.handle, 0),
    "capture": lambda device: device.capture(lambda: None),
    "mark": lambda device: device.mark(),
    "elapsed": lambda device: device.elapsed_ms(EVENT, EVENT),
    "synchronize": lambda device: device.synchronize(),
    "free bytes": lambda device: device.free_nbytes(),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_fit_the_bindings(name: str) -> None:
    """Without a driver every call is refused; wrong arguments would raise a TypeError."""
    if has_gpu():
        pytest.skip("a GPU answers here, and the addresses are made up")
    device = CudaDevice.__new__(CudaDevice)
    device._cuda, device._before, device._after = runtime, EVENT, EVENT
    device._first, device._second = runtime.cudaStream_t(), runtime.cudaStream_t()
    device._stream = device._first
    with pytest.raises(GpuError, match=r"cudaErrorInsufficientDriver|cudaErrorNoDevice"):
        CALLS[name](device)


@pytest.fixture
def gpu() -> Iterator[CudaDevice]:
    yield gpu_device()


def uploaded(gpu: CudaDevice, array: Array) -> Buffer:
    buffer = gpu.zeros(array.shape, str(array.dtype))
    gpu.copy(buffer.whole, Buffer.of(array).whole)()
    gpu.synchronize()
    return buffer


def downloaded(gpu: CudaDevice, buffer: Buffer) -> Array:
    array = np.empty(buffer.shape, buffer.dtype)
    gpu.copy(Buffer.of(array).whole, buffer.whole)()
    gpu.synchronize()
    return array


@pytest.mark.gpu
def test_memory_is_zero_and_copies_arrive(gpu: CudaDevice) -> None:
    assert not downloaded(gpu, gpu.zeros((3, 5), "float32")).any()
    array = np.arange(60, dtype=np.int64).reshape(3, 4, 5)
    np.testing.assert_array_equal(downloaded(gpu, uploaded(gpu, array)), array)


@pytest.mark.gpu
def test_parts_are_copied_and_cleared(gpu: CudaDevice) -> None:
    array = np.arange(1, 61, dtype=np.int64).reshape(3, 4, 5)
    source, target = uploaded(gpu, array), gpu.zeros((3, 4, 5), "int64")
    gpu.copy(target.part(1, 0, 2), source.part(1, 1, 2))()
    gpu.clear(source.part(1, 1, 2))
    expected = np.zeros_like(array)
    expected[:, :2] = array[:, 1:3]
    array[:, 1:3] = 0
    np.testing.assert_array_equal(downloaded(gpu, target), expected)
    np.testing.assert_array_equal(downloaded(gpu, source), array)


@pytest.mark.gpu
def test_a_capture_does_nothing_until_it_is_replayed(gpu: CudaDevice) -> None:
    source = gpu.zeros((4,), "int64")
    target = gpu.zeros((4,), "int64")
    array, result = gpu.staging(source), gpu.staging(target)
    upload = gpu.copy(source.whole, Buffer.of(array).whole)
    move = gpu.copy(target.whole, source.whole)
    download = gpu.copy(Buffer.of(result).whole, target.whole)

    def work() -> None:
        upload()
        move()
        download()

    array[:] = 1
    replay = gpu.capture(work)
    gpu.synchronize()
    assert not result.any()
    for value in (2, 3):
        array[:] = value
        replay()
        gpu.synchronize()
        assert (result == value).all()


@pytest.mark.gpu
def test_elapsed_time_covers_the_work_between_two_marks(gpu: CudaDevice) -> None:
    target, source = (gpu.zeros((1 << 28,), "uint8") for _ in range(2))
    copy = gpu.copy(target.whole, source.whole)
    marks = [gpu.mark()]
    for copies in (0, 1, 20):
        for _ in range(copies):
            copy()
        marks.append(gpu.mark())
    gpu.synchronize()
    none, one, twenty = (gpu.elapsed_ms(*pair) for pair in pairwise(marks))
    assert 0 <= none < one < twenty


@pytest.mark.gpu
def test_the_error_that_stops_a_capture_is_shown(gpu: CudaDevice) -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        gpu.capture(work)
    gpu.capture(lambda: None)()
    gpu.synchronize()


@pytest.mark.gpu
def test_too_large_an_allocation_is_reported(gpu: CudaDevice) -> None:
    with pytest.raises(GpuMemoryError):
        gpu.zeros((1 << 50,), "uint8")
    free = gpu.free_nbytes()
    assert free is not None and 0 < free < 1 << 50
