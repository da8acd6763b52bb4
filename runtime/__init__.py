"""Runs a bundle with numpy and an engine, without torch and onnx.

The names below are loaded on first use. Commands can therefore show their options, and `doctor` can run, even if numpy or
another library is broken.
"""

from typing import TYPE_CHECKING, Any

from pplex.runtime.environment import disable_telemetry
from pplex.runtime.errors import PplexError

if TYPE_CHECKING:
    from pplex.runtime.sampling import GREEDY, Sampling
    from pplex.runtime.session import Reply, Runtime, Session

__all__ = ["GREEDY", "PplexError", "Reply", "Runtime", "Sampling", "Session"]

disable_telemetry()  # every package of ours imports this one before ONNX Runtime


def __getattr__(name: str) -> Any:
    """Import the session's libraries with the first name: if one is missing, the command says which."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pplex.runtime import session

    return getattr(session, name)
