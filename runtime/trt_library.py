"""TensorRT and TensorRT-RTX: one Python API under two module names, and their differences for the runtime.

Called by `runtime.trt`, `runtime.backend` and `engines`.
"""

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


class TensorRTMessages:
    """Keeps a library's messages for our own messages, instead of printing them. The library gets `logger`."""

    def __init__(self, trt: Any, only_errors: bool):
        """`only_errors`: drop all other messages, for a process that runs for days."""
        said: list[tuple[bool, str]] = []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                is_error = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
                if is_error or not only_errors:
                    said.append((is_error, message))

        self.logger, self._said = Logger(), said

    @property
    def lines(self) -> list[str]:
        """All messages."""
        return [message for _, message in self._said]

    def first_error(self) -> str:
        return next((message for is_error, message in self._said if is_error), _NO_REASON)

    def last_error(self) -> str:
        return next((message for is_error, message in reversed(self._said) if is_error), _NO_REASON)
