"""Running a bundle: numpy and an engine, without torch and onnx."""

from pplex.runtime.environment import disable_telemetry
from pplex.runtime.errors import PplexError
from pplex.runtime.session import GREEDY, Reply, Runtime, Sampling, Session

__all__ = ["GREEDY", "PplexError", "Reply", "Runtime", "Sampling", "Session"]

disable_telemetry()  # every package of ours imports this one, and none imports ONNX Runtime before
