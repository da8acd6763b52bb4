"""Tries a library in a separate process: an exception, a crash or a hang becomes an error message. Called by the checks."""

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
    answer = {"value": names["found"]}
except BaseException as error:
    answer = described(error)
print("\\n" + json.dumps(answer, default=str), flush=True)
"""


@dataclass(frozen=True)
class Probe:
    """The value found, or an error message. `missing` names the module whose absence caused the error."""

    value: Any = None
    error: str | None = None
    missing: str | None = None


def probe(code: str, *arguments: str) -> Probe:
    """Run `code` and return what it stores in the variable `found`, which must be serialisable as JSON.

    `code` can use the list `arguments`, and `described(error)`, which gives the fields of a Probe for an error.
    """
    # -P: import installed modules, not files of the current folder.
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
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return Probe(error=f"Python exits with code {done.returncode}: {last}")


def first_line(text: str | None, length: int = 240) -> str:
    """The first line of an error, shortened: some libraries print a page of advice."""
    line = next((line.strip() for line in (text or "").splitlines() if line.strip()), "")
    return line if len(line) <= length else f"{line[:length]} ..."


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
