"""Runs steps, each in its own process, and stores their results: called by benchmarks/gpu.py."""

import ctypes
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from gpu_results import CUT_OFF, FAILED, OK, SKIPPED, TIMED_OUT, TRIES, ResultStore, Step, StepPlan

SKIPS = 77  # exit code of a command that finds nothing to do here; its last line says why
PR_SET_PDEATHSIG = 1  # of Linux's prctl
GRACE_S = 10.0  # from SIGTERM to SIGKILL
LAST_LINES = 20
_locks: list[int] = []  # descriptors of the locks that this process holds
LOGGED_NBYTES = 150_000  # of a step's output, at most: 15 MB for 100 steps


def run_steps(
    plan: StepPlan, names: Sequence[str], deadline_s: float, tell: Callable[[str], None] = print
) -> list[str]:
    """Run the steps `names` and the steps they need, in order, unless they are done; returns the names of those left.

    `deadline_s` is the end of the whole call, in time.monotonic(). `tell` gets a line for every step.
    """
    chosen, begun, left = plan.with_needs(names), False, []
    for step in plan.steps.values():
        if step.name not in chosen or not plan.is_wanted(step):
            if step.name in chosen and not plan.store.is_settled(step.name):
                plan.store.record(step.name, outcome=SKIPPED, reason=plan.why_not(step), tries=0)
            continue
        remaining_s = deadline_s - time.monotonic() - GRACE_S
        unmade = [name for name in step.needs if name in left]
        if unmade or remaining_s <= 0 or (begun and remaining_s < step.least_s):
            left.append(step.name)
            continue
        begun = True
        _run(step, plan.store, remaining_s)
        record = plan.store.steps[step.name]
        tell(f"{record['outcome']:<10} {record['seconds']:>6.0f} s  {step.name}")
        if record["outcome"] == CUT_OFF and record["tries"] < TRIES:
            left.append(step.name)
        plan.free()
    return left


def _run(step: Step, store: ResultStore, remaining_s: float) -> None:
    if step.makes and step.makes.exists():  # it is old; an unfinished one, which may be resumed, lies beside it
        shutil.rmtree(step.makes)
    tries, partial = _taken_up(step, store.steps.get(step.name, {}))
    described = {
        "tries": tries, "command": shlex.join(step.command), "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    store.record(
        step.name, outcome=CUT_OFF, reason="the call ended while it ran", seconds=0.0, result=partial, **described
    )
    began = time.monotonic()
    code, last, result = _logged(
        step, min(step.limit_s, remaining_s), store.log_path, f"{described['began']}, try {tries}"
    )
    outcome, reason = _judged(code, step, remaining_s, tries, last)
    store.record(
        step.name,
        outcome=outcome,
        reason=reason,
        seconds=round(time.monotonic() - began, 1),
        result=partial if result is None else result,
        exit_code=code,
        last_lines=last if outcome != OK else [],
        **described,
    )


def _taken_up(step: Step, before: Mapping[str, Any]) -> tuple[int, Any]:
    """The number of this try, and the partial result of the try before; the command resumes from it through `out`."""
    continued = before.get("outcome") == CUT_OFF
    if step.out is None:
        return before["tries"] % TRIES + 1 if continued else 1, None
    step.out.parent.mkdir(parents=True, exist_ok=True)
    if not continued:
        step.out.unlink(missing_ok=True)
    if not step.out.exists():  # another machine measured it; its times must not be mixed with ours
        return 1, None
    return before["tries"] % TRIES + 1, _result(step, "")


def _logged(step: Step, limit_s: float, path: Path, title: str) -> tuple[int | None, list[str], Any]:
    """Run the command; returns its exit code, its last lines and its JSON. Other output goes to the log."""
    printed_path = path.with_suffix(".part")
    with path.open("ab") as log, printed_path.open("w+b") as printed:
        log.write(f"\n===== {step.name}, {title}\n$ {shlex.join(step.command)}\n".encode())
        log.flush()
        start = log.tell()
        code = _execute(step.command, limit_s, printed, log)
        printed.seek(0)
        text = printed.read().decode(errors="replace")
        result = _result(step, text)
        if result is None or step.out:
            log.write(text.encode())
    printed_path.unlink()
    return code, _shorten(path, start), result


def _execute(command: Sequence[str], limit_s: float, printed: BinaryIO, log: BinaryIO) -> int | None:
    """The exit code; None if the command was killed at its limit. All processes that it started are killed, too."""
    try:
        # Its own process group, which can be killed as a whole. Not its own session: that would survive the end of ours.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=log,
            process_group=0,
            pass_fds=_locks,
            preexec_fn=_end_with_the_call,
        )
    except OSError as error:
        log.write(f"{error}\n".encode())
        return 127
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        _signal(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_the_call() -> None:
    """Runs in the step's process: the kernel kills the step when the call dies, because a killed call cannot."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def lock(folder: Path) -> bool:
    """Keep other calls out of `folder`. Returns False if another call, or one of its steps, is still running there."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _locks.append(descriptor)
    return True


def _signal(group: int, which: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the whole group has ended
        os.killpg(group, which)


def _judged(code: int | None, step: Step, remaining_s: float, tries: int, last: list[str]) -> tuple[str, str | None]:
    if code == 0:
        return OK, None
    if code == SKIPS:
        return SKIPPED, last[-1] if last else "its command found nothing to do"
    if code is not None:
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return FAILED, f"{what}: {_error_line(last)}"
    if step.limit_s <= remaining_s:
        return TIMED_OUT, f"it took more than {step.limit_s:g} s"
    reason = f"the call ended after {remaining_s:.0f} s of this step"
    return (CUT_OFF, reason) if tries < TRIES else (TIMED_OUT, f"{reason}, in try {tries}")


def _error_line(last: Sequence[str]) -> str:
    """The line with the error: `pplex-export` begins it with a word, and may print a hint after it."""
    errors = [line for line in last if line.startswith("Error: ")]
    return (errors or list(last) or ["it printed nothing"])[-1]


def _result(step: Step, printed: str) -> Any:
    """The command's JSON, maybe partial; None if it has none or it cannot be read."""
    try:
        if step.out is not None:
            return json.loads(step.out.read_text())
        lines = printed.splitlines()  # a library may have printed something before
        return json.loads("\n".join(lines[lines.index("{") :])) if step.json else None
    except (OSError, ValueError):
        return None


def _shorten(log: Path, start: int) -> list[str]:
    """Cut a step's output in the log to its last LOGGED_NBYTES bytes; returns its last lines."""
    with log.open("r+b") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LOGGED_NBYTES))
        kept = file.read()
        file.seek(start)
        file.write(kept)
        file.truncate()
    lines = (line.rstrip()[-500:] for line in kept.decode(errors="replace").replace("\r", "\n").splitlines())
    return [line for line in lines if line][-LAST_LINES:]
