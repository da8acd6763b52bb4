"""A folder that appears under its name only when it is whole."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pplex.runtime.errors import OutputError

LOCK_FILE = ".lock"  # held by the process that fills a folder, so that another one knows whether it was abandoned


@contextmanager
def whole_folder(out: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    What stands at `out` is replaced if `may_replace` says so, asked at the end; an empty folder always is. A process
    that is killed leaves its folder behind, and `out` as it was; the next one for the same `out` removes it. Raises
    OutputError where the folder cannot be made, filled or put in place.
    """
    out = out.resolve()
    lock: int | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        folder = out.with_name(f".{out.name}.building-{secrets.token_hex(4)}")
        folder.mkdir()
        lock = _locked(folder)
        try:
            yield folder
            (folder / LOCK_FILE).unlink()
            _put_in_place(folder, out, may_replace)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        name = error.filename or out
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error} ({name}). Name another folder."
        ) from error
    finally:
        if lock is not None:
            os.close(lock)


def may_take(out: Path, may_replace: Callable[[Path], bool]) -> bool:
    """Whether a whole folder may take the place of `out`."""
    return not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())) or may_replace(out)


def _put_in_place(folder: Path, out: Path, may_replace: Callable[[Path], bool]) -> None:
    if not may_take(out, may_replace):
        raise OutputError(f"{out} has been made by somebody else in the meantime. Name another folder.")
    old = folder.with_name(folder.name.replace(".building-", ".replaced-"))
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    for folder in (*out.parent.glob(f".{out.name}.building-*"), *out.parent.glob(f".{out.name}.replaced-*")):
        lock = _locked(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """The open lock of a folder, None if another process holds it; the system frees it when its holder ends."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
