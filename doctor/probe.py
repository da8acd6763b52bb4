"""Looks at a library in a process of its own: what it raises, a crash and a standstill become an error in words."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 120

_LOOK = """
import json, sys
def described(error):
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {"error": f"{type(error).__name__}: {error}", "missing": missing}
names = {"arguments": sys.argv[2:], "described": described}
try:
    exec(sys.argv[1], names)
    told = {"value": names["found"]}
except BaseException as error:
    told = described(error)
print("\\n" + json.dumps(told, default=str), flush=True)
"""


@dataclass(frozen=True)
class Probe:
    """What was found, or in words why nothing was; `missing` is the module that is not installed, if that is why."""

    value: Any = None
    error: str | None = None
    missing: str | None = None


def probe(code: str, *arguments: str) -> Probe:
    """What `code` leaves in the variable `found`, which must go into JSON.

    It has the list `arguments`, and `described`, which makes the arguments of a Probe of an error.
    """
    # -P: modules come from where they are installed, not from the folder that we are in.
    command = [sys.executable, "-P", "-c", _LOOK, code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Probe(error=f"no answer within {TIMEOUT_S} s")
    except OSError as error:
        return Probe(error=f"Python cannot be started: {error}")
    if done.returncode < 0:
        return Probe(error=f"it crashes ({_signal(-done.returncode)})")
    try:
        return Probe(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip() or "no word why").splitlines()[-1]
        return Probe(error=f"it ends Python with exit code {done.returncode}: {last}")


def first_line(text: str | None, length: int = 240) -> str:
    """An error's first line, cut to a length: some libraries add a page of advice of their own."""
    line = next((line.strip() for line in (text or "").splitlines() if line.strip()), "")
    return line if len(line) <= length else f"{line[:length]} ..."


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
