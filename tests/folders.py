"""Folders of the golden data."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "tiny"
MOSHI = GOLDEN / "moshi"
STEER = GOLDEN / "steer"
TRAINED = Path(__file__).parent / "trained"  # a trained small model: docs/precision.md, "A trained model"
CASES = Path(__file__).parent / "cases"  # small inputs that once broke something


def golden_folders() -> list[Path]:
    """The folders in PPLEX_GOLDEN (a path list), or those in tests/golden that have a checkpoint."""
    return _named("PPLEX_GOLDEN") or sorted(p.parent for p in GOLDEN.glob("*/checkpoint"))


def steer_folders() -> list[Path]:
    """The folders of steered recordings in PPLEX_GOLDEN_STEER (a path list), or that in tests/golden."""
    return _named("PPLEX_GOLDEN_STEER") or [STEER]


def _named(variable: str) -> list[Path]:
    return [Path(name) for name in os.environ.get(variable, "").split(os.pathsep) if name]
