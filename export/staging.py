"""A folder that appears under its name only when it is whole."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from pplex.runtime.bundle import CACHES_FOLDER, LOCK_FILE, STEPS_FILE
from pplex.runtime.errors import OutputError
from pplex.runtime.files import is_folder


class Steps:
    """The steps of long work in a folder, each done once even if the work is interrupted and begun again.

    `identity` says what is being made from what: what was done for another identity is removed.
    """

    def __init__(self, folder: Path, identity: str):
        self.folder, self.identity = folder, identity
        self.done = self._read()  # step -> its files and their sizes
        kept = {
            LOCK_FILE,
            CACHES_FOLDER,
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
            for path in new:
                _sync(path)
            self.done[name] = {path.name: path.stat().st_size for path in new}
            self._write()

    def remove(self, name: str) -> None:
        """Undo a step that has served its purpose: its files go, and it would be done again."""
        for file in self.done.pop(name, {}):
            (self.folder / file).unlink()
        self._write()

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            record = json.loads((self.folder / STEPS_FILE).read_text())
            if record["identity"] != self.identity:
                return {}
            return {name: files for name, files in record["done"].items() if self._whole(files)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not written by us
            return {}

    def _whole(self, files: dict[str, int]) -> bool:
        paths = {self.folder / name: nbytes for name, nbytes in files.items()}
        return all(path.is_file() and path.stat().st_size == nbytes for path, nbytes in paths.items())

    def _write(self) -> None:
        fresh = self.folder / f"{STEPS_FILE}.new"
        fresh.write_text(json.dumps({"identity": self.identity, "done": self.done}))
        _sync(fresh)
        fresh.replace(self.folder / STEPS_FILE)


@contextmanager
def whole_folder(out: Path, may_replace: Callable[[Path], bool], resumable: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    What stands at `out` is replaced if `may_replace` says so, asked at the end; an empty folder always is. A process
    that is killed leaves its folder behind, and `out` as it was or, in the moment between two renames, under another
    name; the next one for the same `out` removes the one and renames the other. With `resumable`, a folder in which Steps
    have been done is kept instead, and the next one for the same `out` is given it. Raises OutputError where the folder
    cannot be made, filled or put in place, or another process is at it.
    """
    out = out.resolve()
    lock: int | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean_up_after_killed(out)
        folder = partial_folder(out) if resumable else out.with_name(f".{out.name}.building-{secrets.token_hex(4)}")
        folder.mkdir(exist_ok=resumable)
        lock = _locked(folder)
        if lock is None:
            raise OutputError(f"{out} is being built by another process. Wait for it, or name another folder.")
        try:
            yield folder
            _put_in_place(folder, out, may_replace)
        except BaseException:
            if not (folder / STEPS_FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
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
    return not os.path.lexists(out) or (is_folder(out) and not any(out.iterdir())) or may_replace(out)


def _put_in_place(folder: Path, out: Path, may_replace: Callable[[Path], bool]) -> None:
    if not may_take(out, may_replace):
        raise OutputError(f"{out} has been made by somebody else in the meantime. Name another folder.")
    old = out.with_name(f".{out.name}.replaced-{secrets.token_hex(4)}")
    try:
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    # Only now: until the folder has its name, they are what another process goes by.
    for name in (STEPS_FILE, LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up_after_killed(out: Path) -> None:
    """What processes for the same `out` have left that do not live any more: put back what they replaced, or remove it."""
    pattern = f".{escape(out.name)}"
    for old in out.parent.glob(f"{pattern}.replaced-*"):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif _is_abandoned(partial_folder(out)):  # else its holder is about to put another one there
            old.rename(out)
    for folder in out.parent.glob(f"{pattern}.building-*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether no living process fills a folder."""
    if not folder.exists():
        return True
    lock = _locked(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _locked(folder: Path) -> int | None:
    """The open lock of a folder, None if another process holds it; the system frees it when its holder ends."""
    path = folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # held, or renamed by its holder since it was opened
        pass
    os.close(descriptor)
    return None


def _sync(path: Path) -> None:
    """Wait until the disk has a file: a record that outlives a power cut must not tell of one that did not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
