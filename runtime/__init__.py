"""Running a bundle: numpy and an engine, without torch and onnx.

What is named here is loaded when it is first used, so that commands can name their options, and `doctor` can look, where
numpy or another library is broken.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pplex.runtime.environment import disable_telemetry
from pplex.runtime.errors import PplexError

if TYPE_CHECKING:
    from pplex.runtime.session import GREEDY, Reply, Runtime, Sampling, Session

__all__ = ["GREEDY", "PplexError", "Reply", "Runtime", "Sampling", "Session"]

disable_telemetry()  # every package of ours imports this one, and none imports ONNX Runtime before


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("pplex.runtime.session"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
