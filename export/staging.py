"""A folder that appears under its name only when it is whole."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pplex.runtime.errors import OutputError

LOCK_FILE = ".lock"  # held by the process that fills a folder, so that another one knows whether it was abandoned
STEPS_FILE = ".steps.json"


class Steps:
    """The steps of long work in a folder, each done once even if the work is interrupted and begun again.

    `identity` says what is being made from what: what was done for another identity is removed.
    """

    def __init__(self, folder: Path, identity: str):
        self.folder, self.identity = folder, identity
        self.done = self._read()
        kept = {
            LOCK_FILE,
            *([STEPS_FILE] if self.done else []),
            *(name for files in self.done.values() for name in files),
        }
        for path in folder.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def once(self, name: str, make: Callable[[], object]) -> None:
        """Call `make`, which writes files into the folder, unless it was called for this step and its files are there."""
        if name not in self.done:
            before = {path.name for path in self.folder.iterdir()}
            make()
            new = [path for path in self.folder.iterdir() if path.is_file() and path.name not in before]
            self.done[name] = {path.name: path.stat().st_size for path in new}
            self._write()

    def forget(self, name: str) -> None:
        """Remove what a step wrote; the step stays done."""
        for file in self.done[name]:
            (self.folder / file).unlink(missing_ok=True)
        self.done[name] = {}
        self._write()

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            record = json.loads((self.folder / STEPS_FILE).read_text())
        except (OSError, ValueError):
            return {}
        if record["identity"] != self.identity:
            return {}
        return {name: files for name, files in record["done"].items() if self._whole(files)}

    def _whole(self, files: dict[str, int]) -> bool:
        paths = {self.folder / name: nbytes for name, nbytes in files.items()}
        return all(path.is_file() and path.stat().st_size == nbytes for path, nbytes in paths.items())

    def _write(self) -> None:
        fresh = self.folder / f"{STEPS_FILE}.new"
        fresh.write_text(json.dumps({"identity": self.identity, "done": self.done}))
        fresh.replace(self.folder / STEPS_FILE)


@contextmanager
def whole_folder(out: Path, may_replace: Callable[[Path], bool], resumable: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    What stands at `out` is replaced if `may_replace` says so, asked at the end; an empty folder always is. A process
    that is killed leaves its folder behind, and `out` as it was; the next one for the same `out` removes it. With
    `resumable`, a folder in which Steps have been done is kept instead, and the next one for the same `out` is given it.
    Raises OutputError where the folder cannot be made, filled or put in place, or another process is at it.
    """
    out = out.resolve()
    lock: int | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        folder = partial_folder(out) if resumable else out.with_name(f".{out.name}.building-{secrets.token_hex(4)}")
        folder.mkdir(exist_ok=resumable)
        lock = _locked(folder)
        if lock is None:
            raise OutputError(f"{out} is being built by another process. Wait for it, or name another folder.")
        try:
            yield folder
            _put_in_place(folder, out, may_replace)
        finally:
            if not (folder / STEPS_FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        name = error.filename or out
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error} ({name}). Name another folder."
        ) from error
    finally:
        if lock is not None:
            os.close(lock)


def partial_folder(out: Path) -> Path:
    """Where the finished steps of an interrupted, resumable work on `out` are kept."""
    out = out.resolve()
    return out.with_name(f".{out.name}.partial")


def may_take(out: Path, may_replace: Callable[[Path], bool]) -> bool:
    """Whether a whole folder may take the place of `out`."""
    return not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())) or may_replace(out)


def _put_in_place(folder: Path, out: Path, may_replace: Callable[[Path], bool]) -> None:
    if not may_take(out, may_replace):
        raise OutputError(f"{out} has been made by somebody else in the meantime. Name another folder.")
    for name in (STEPS_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    old = out.with_name(f".{out.name}.replaced-{secrets.token_hex(4)}")
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
