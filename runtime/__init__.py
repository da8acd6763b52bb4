"""Running a bundle: numpy and an engine, without torch and onnx."""

from pplex.runtime.errors import PplexError
from pplex.runtime.session import GREEDY, Reply, Runtime, Sampling, Session

__all__ = ["GREEDY", "PplexError", "Reply", "Runtime", "Sampling", "Session"]
