"""Folders of the golden data."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "tiny"
MOSHI = GOLDEN / "moshi"
CASES = Path(__file__).parent / "cases"  # small inputs that once broke something


def golden_folders() -> list[Path]:
    """The folders in PPLEX_GOLDEN (a path list), or those in tests/golden."""
    named = os.environ.get("PPLEX_GOLDEN")
    return (
        [Path(name) for name in named.split(os.pathsep)] if named else sorted(p for p in GOLDEN.iterdir() if p.is_dir())
    )
