"""TensorRT and TensorRT-RTX: one Python API under two module names, and their differences for the runtime.

Called by `runtime.trt`, `runtime.backend` and `engines`.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pplex.runtime.gpus import TENSORRT, TENSORRT_RTX
from pplex.runtime.libraries import load_library

_NO_REASON = "no reason given"


@dataclass(frozen=True)
class TensorRTLibrary:
    """One of the two libraries. `kind`: its name in a manifest. `jit`: whether it compiles kernels when an engine is loaded.

    A library that compiles at load can cache its kernels, and reports whether a context can be captured.
    """

    kind: str
    title: str
    module: str
    package: str
    extra: str
    jit: bool

    def load(self) -> Any:
        """The library's module, to run engines. Raises LibraryError if it cannot be loaded."""
        return load_library(
            self.module,
            f"This bundle's engines need {self.kind}, which is not installed: pip install 'pplex-export[{self.extra}]'",
        )


TENSORRT_LIBRARIES: Mapping[str, TensorRTLibrary] = MappingProxyType(
    {
        library.kind: library
        for library in (
            TensorRTLibrary(TENSORRT_RTX, "TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx-cu13", "rtx", jit=True),
            TensorRTLibrary(TENSORRT, "TensorRT", "tensorrt", "tensorrt", "tensorrt", jit=False),
        )
    }
)


class BuilderMessages:
    """All messages of a builder, which gets `logger`. Its figures are in them."""

    def __init__(self, trt: Any):
        said: list[tuple[bool, str]] = []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                said.append((severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR), message))

        self.logger, self._said = Logger(), said

    @property
    def lines(self) -> list[str]:
        return [message for _, message in self._said]

    def first_error(self) -> str:
        return next((message for is_error, message in self._said if is_error), _NO_REASON)


class RuntimeErrors:
    """The newest errors of a runtime and of its engines, for our own messages.

    The runtime gets the library's own `logger`, because a logger in Python could block: a thread of the library that logs
    would wait for Python, while a call of ours holds Python and waits for that thread.
    """

    def __init__(self, trt: Any):
        found = self._found = deque[tuple[Any, str]](maxlen=16)

        class Recorder(trt.IErrorRecorder):
            def __init__(self) -> None:
                trt.IErrorRecorder.__init__(self)

            def report_error(self, code: Any, description: str) -> bool:
                found.append((code, description))
                return True

            def num_errors(self) -> int:
                return len(found)

            def get_error_code(self, index: int) -> Any:
                return found[index][0]

            def get_error_desc(self, index: int) -> str:
                return found[index][1]

            def has_overflowed(self) -> bool:
                return False

            def clear(self) -> None:
                found.clear()

        self.logger, self.recorder = trt.Logger(trt.Logger.INTERNAL_ERROR), Recorder()

    def last(self) -> str:
        return self._found[-1][1] if self._found else _NO_REASON
