"""Agents with known words on Full-Duplex-Bench, and what its own script said of each.

The environment variable PPLEX_FDB names another folder of such agents.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

PLANTED = Path(__file__).parent / "fdb" / "planted"


def planted() -> Path:
    """A folder with official.json and, below it, TASK/ID with the files of an agent."""
    return Path(os.environ.get("PPLEX_FDB") or PLANTED)


def official() -> dict[str, dict[str, Any]]:
    """By TASK/ID: TOR, latency, freq, JSD, or "crash" where the script divided by zero because nobody took over."""
    found: dict[str, dict[str, Any]] = json.loads((planted() / "official.json").read_text())
    return found


def copied(folder: Path, *names: str) -> Path:
    """A copy of our planted agents that a test may change, of all of them or of TASK/ID."""
    for name in names or json.loads((PLANTED / "official.json").read_text()):
        shutil.copytree(PLANTED / name, folder / name)
    return folder
