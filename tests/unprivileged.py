"""Commands as a user who may not read everything: root's right to do so is taken from them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SETPRIV = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
MAIN = "from pplex.cli import main; main()"


def why_not() -> str | None:
    """Why no command can be run in this way here, or None where it can."""
    if os.geteuid() != 0:
        return None  # permissions hold as they are
    if shutil.which("setpriv") is None:
        return "root reads everything, and setpriv (util-linux) is not installed"
    tried = subprocess.run([*SETPRIV, "true"], capture_output=True, text=True)
    return f"root reads everything, and setpriv: {tried.stderr.strip()}" if tried.returncode else None


def run(code: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -c code arguments`."""
    prefix: Sequence[str] = SETPRIV if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
