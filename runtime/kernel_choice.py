"""Whether bundles in int8 and int4 on a processor use our kernels (`pplex.kernels`) or ONNX Runtime's.

Called by `runtime.prepared`, `runtime.ort`, `inspect` and the doctor.
"""

import os
from dataclasses import dataclass

from pplex import kernels
from pplex.kernels import Kernel
from pplex.runtime.errors import EngineError

VARIABLE = "PPLEX_KERNELS"
AUTO, OFF = "auto", "off"
NOT_COMPILED = (
    "They were not compiled, because pip found no C++ compiler. "
    "Install one (apt-get install g++), and then pplex-export again."
)


@dataclass(frozen=True)
class Choice:
    """Our kernels, or None and the reason why ONNX Runtime's is used. `wanted`: the user did not turn them off."""

    kernel: Kernel | None
    reason: str | None = None
    wanted: bool = True


def chosen_kernel() -> Kernel | None:
    """Our kernels; None for ONNX Runtime's. Raises EngineError like `choice`."""
    return choice().kernel


def choice() -> Choice:
    """Choose the kernels, by the environment variable PPLEX_KERNELS: auto, off, or a level of instructions.

    Raises EngineError for any other value.
    """
    wanted = os.environ.get(VARIABLE) or AUTO
    if wanted == OFF:
        return Choice(None, f"{VARIABLE} is {OFF}.", wanted=False)
    path = kernels.compiled()
    if path is None:
        return _without(wanted, NOT_COMPILED)
    try:
        kernel = kernels.load(path)
    except OSError as error:
        return _without(wanted, f"They cannot be loaded ({error}). Install pplex-export again on this machine.")
    try:
        kernel.use(wanted)
    except ValueError as error:
        raise EngineError(f"{VARIABLE}: {error} Or {AUTO}, or {OFF}.") from error
    return Choice(kernel)


def _without(wanted: str, reason: str) -> Choice:
    if wanted != AUTO:
        raise EngineError(f"{VARIABLE} is {wanted!r}, but our kernels are missing. {reason}")
    return Choice(None, reason)
