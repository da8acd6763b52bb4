"""A folder that appears under its name only when it is whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("building", "replaced")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    What stands at `out` is replaced. A process that is killed leaves its folder behind, and `out` as it was; the next
    one for the same `out` removes it.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    folder, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in KINDS)
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        for leftover in (folder, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    for kind in KINDS:
        for folder in out.parent.glob(f".{out.name}.{kind}-*"):
            pid = folder.name.rpartition("-")[2]
            if not (pid.isdigit() and _is_running(int(pid))):
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
