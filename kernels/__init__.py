"""Our kernels for processors, in C++ (`src`): a library of operators for ONNX Runtime. Called by `runtime.kernel_choice`.

`pip install` compiles the library if it finds a C++ compiler. Without it, ONNX Runtime's own operators are used.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

LAYOUT = "2"  # of prepared graphs: change it when the operators or the packed weights (src/layout.h) change
DOMAIN, PRODUCT, RINGS, STEPS = "pplex", "MatMulPacked", "RingAttention", "StepAttention"
BITS, BLOCKS = (4, 8), (32, 64, 128)  # of a weight; weights that share a scale
WIDTHS = (16, 32, 64, 128)  # numbers of a key or value that RINGS and STEPS read
_NAME = "libkernels*.so"


@dataclass(frozen=True)
class Kernel:
    """The library, and the levels of instructions that this processor runs, the fastest first."""

    path: Path
    levels: tuple[str, ...]

    @property
    def level(self) -> str:
        """The level in use."""
        name: bytes = _functions(self.path).pplex_level()
        return name.decode()

    def use(self, level: str) -> None:
        """Choose a level for all products of this process. Raises ValueError if this processor does not run it."""
        if not _functions(self.path).pplex_use_level(level.encode()):
            raise ValueError(f"This processor does not run {level!r}: choose one of {', '.join(self.levels)}.")


def compiled() -> Path | None:
    """The compiled library, or None."""
    return next(iter(sorted(Path(__file__).parent.glob(_NAME))), None)


def load(path: Path) -> Kernel:
    """Load the library. Raises OSError if it was compiled for another kind of processor or system."""
    names: bytes = _functions(path).pplex_levels()
    return Kernel(path, tuple(names.decode().split(",")))


def _functions(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("pplex_levels", "pplex_level"):
        getattr(library, name).restype = ctypes.c_char_p
    return library
