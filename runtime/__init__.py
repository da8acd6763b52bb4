"""Running a bundle: numpy and an engine, without torch and onnx.

What is named here is loaded when it is first used, so that commands can name their options, and `doctor` can look, where
numpy or another library is broken.
"""

from typing import TYPE_CHECKING, Any

from pplex.runtime.environment import disable_telemetry
from pplex.runtime.errors import PplexError

if TYPE_CHECKING:
    from pplex.runtime.sampling import GREEDY, Sampling
    from pplex.runtime.session import Reply, Runtime, Session

__all__ = ["GREEDY", "PplexError", "Reply", "Runtime", "Sampling", "Session"]

disable_telemetry()  # every package of ours imports this one, and none imports ONNX Runtime before


def __getattr__(name: str) -> Any:
    """What a session needs is imported with the first of its names: libraries may be missing, and the command says which."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pplex.runtime import session

    return getattr(session, name)
