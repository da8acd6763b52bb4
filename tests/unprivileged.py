"""Commands of a user who may not read everything: root's right to read all files is removed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SETPRIV = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
MAIN = "from pplex.cli import main; main()"


def why_not() -> str | None:
    """The reason why this does not work here, or None."""
    if os.geteuid() != 0:
        return None  # file permissions apply anyway
    if shutil.which("setpriv") is None:
        return "root reads everything, and setpriv (util-linux) is not installed"
    tried = subprocess.run([*SETPRIV, "true"], capture_output=True, text=True)
    return f"root reads everything, and setpriv: {tried.stderr.strip()}" if tried.returncode else None


def run(code: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -c code arguments`."""
    prefix: Sequence[str] = SETPRIV if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
