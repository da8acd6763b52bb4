"""Functions of cuda.bindings.runtime that pplex.runtime.cuda_device calls, through ctypes: the package needs a driver."""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

NAME, MAJOR, MINOR = b"Stand-in GPU", 9, 0  # the same as in cudart.c
MEMORY_NBYTES = 141 << 30
_POINTER, _SIZE, _INT, _FLAGS = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint

Function = Callable[..., tuple[Any, ...]]


class ErrorCode(IntEnum):
    """The values of cudaError_t that CudaDevice distinguishes and cudart.c returns."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDeviceFunction = 98
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalState = 401
    cudaErrorSystemDriverMismatch = 803
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


# Argument types of each function; functions in _GIVING return a handle or an address through a first pointer argument.
_GIVING = {
    "cudaMalloc": (_SIZE,),
    "cudaHostAlloc": (_SIZE, _FLAGS),
    "cudaStreamCreateWithFlags": (_FLAGS,),
    "cudaGraphInstantiate": (_POINTER, ctypes.c_ulonglong),
    "cudaEventCreate": (),
}
_DOING = {
    "cudaSetDevice": (_INT,),
    "cudaFree": (_POINTER,),
    "cudaFreeHost": (_POINTER,),
    "cudaMemcpyAsync": (_POINTER, _POINTER, _SIZE, _INT, _POINTER),
    "cudaMemcpy2DAsync": (_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _INT, _POINTER),
    "cudaMemsetAsync": (_POINTER, _INT, _SIZE, _POINTER),
    "cudaMemset2DAsync": (_POINTER, _SIZE, _INT, _SIZE, _SIZE, _POINTER),
    "cudaStreamBeginCapture": (_POINTER, _INT),
    "cudaStreamSynchronize": (_POINTER,),
    "cudaGraphDestroy": (_POINTER,),
    "cudaGraphExecDestroy": (_POINTER,),
    "cudaGraphLaunch": (_POINTER, _POINTER),
    "cudaEventRecord": (_POINTER, _POINTER),
    "cudaEventDestroy": (_POINTER,),
}


def bindings(library: ctypes.CDLL) -> SimpleNamespace:
    """The module, for a loaded libcudart."""

    def end_capture(stream: int) -> tuple[ErrorCode, int]:
        graph = _POINTER()
        return ErrorCode(library.cudaStreamEndCapture(_POINTER(stream), ctypes.byref(graph))), graph.value or 0

    def elapsed(first: int, last: int) -> tuple[ErrorCode, float]:
        milliseconds = ctypes.c_float()
        code = library.cudaEventElapsedTime(ctypes.byref(milliseconds), _POINTER(first), _POINTER(last))
        return ErrorCode(code), milliseconds.value

    def memory() -> tuple[ErrorCode, int, int]:
        free, total = _SIZE(), _SIZE()
        return ErrorCode(library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))), free.value, total.value

    return SimpleNamespace(
        **{name: _giving(library[name], types) for name, types in _GIVING.items()},
        **{name: _doing(library[name], types) for name, types in _DOING.items()},
        cudaStreamEndCapture=end_capture,
        cudaMemGetInfo=memory,
        cudaEventElapsedTime=elapsed,
        cudaGetDeviceProperties=lambda _: (
            ErrorCode.cudaSuccess,
            SimpleNamespace(name=NAME, major=MAJOR, minor=MINOR, totalGlobalMem=MEMORY_NBYTES),
        ),
        cudaGetErrorString=lambda code: (ErrorCode.cudaSuccess, code.name.encode()),
        cudaError_t=ErrorCode,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyDefault=4),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeRelaxed=2),
        cudaStreamNonBlocking=1,
        cudaHostAllocDefault=0,
    )


def _giving(function: Any, types: tuple[Any, ...]) -> Function:
    function.argtypes = (ctypes.POINTER(_POINTER), *types)

    def call(*arguments: Any) -> tuple[ErrorCode, int]:
        given = _POINTER()
        return ErrorCode(function(ctypes.byref(given), *arguments)), given.value or 0

    return call


def _doing(function: Any, types: tuple[Any, ...]) -> Function:
    function.argtypes = types
    return lambda *arguments: (ErrorCode(function(*arguments)),)
