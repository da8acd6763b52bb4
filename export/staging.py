"""Writes a folder under another name and renames it when it is complete: called by `export.build` and `export.synth`."""

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
from pplex.runtime.locks import take_lock


class Steps:
    """The steps of long work in a folder. Each step is done once, even if the work is interrupted and started again.

    `identity` is a fingerprint of the work. Files of other work are deleted.
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
        """Call `make`, which writes files into the folder, unless this step is done and its files exist."""
        if name not in self.done:
            before = {path.name for path in self.folder.iterdir()}
            make()
            new = [path for path in self.folder.iterdir() if path.is_file() and path.name not in before]
            for path in new:
                _sync(path)
            self.done[name] = {path.name: path.stat().st_size for path in new}
            self._write()

    def remove(self, name: str) -> None:
        """Delete the files of a step that are no longer needed."""
        for file in self.done.pop(name, {}):
            (self.folder / file).unlink()
        self._write()

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            record = json.loads((self.folder / STEPS_FILE).read_text())
            if record["identity"] != self.identity:
                return {}
            return {name: files for name, files in record["done"].items() if self._whole(files)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not written by us
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
    """A new folder beside `out` that replaces it if the block ends without an error, and is deleted otherwise.

    An existing `out` is replaced if `may_replace` allows it at the end; an empty folder is always replaced.

    A killed process leaves its new folder behind. If it was killed between two renames, the old `out` has another name.
    The next call for the same `out` deletes the new folder and gives the old one its name back. With `resumable`, a folder
    with finished Steps is kept, and the next call for the same `out` continues it.

    Raises OutputError if the folder cannot be made, filled or renamed, or if another process uses it.
    """
    out = out.resolve()
    lock: int | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean_up_after_killed(out)
        folder = partial_folder(out) if resumable else out.with_name(f".{out.name}.building-{secrets.token_hex(4)}")
        folder.mkdir(exist_ok=resumable)
        lock = take_lock(folder / LOCK_FILE)
        if lock is None:
            raise OutputError(f"{out} is being built by another process. Wait for it, or choose another folder.")
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
            f"{out} cannot be written: {error.strerror or error} ({name}). Choose another folder."
        ) from error
    finally:
        if lock is not None:
            os.close(lock)


def partial_folder(out: Path) -> Path:
    """The folder with the finished steps of an interrupted build of `out`."""
    out = out.resolve()
    return out.with_name(f".{out.name}.partial")


def is_partial_folder(folder: Path) -> bool:
    """Whether a folder is that of an unfinished build."""
    name = folder.resolve().name
    return name.startswith(".") and name.endswith(".partial")


def is_being_built(out: Path) -> bool:
    """Whether a running process is building `out`."""
    return not _is_abandoned(partial_folder(out))


def may_take(out: Path, may_replace: Callable[[Path], bool]) -> bool:
    """Whether a new folder may replace `out`."""
    return not os.path.lexists(out) or (is_folder(out) and not any(out.iterdir())) or may_replace(out)


def _put_in_place(folder: Path, out: Path, may_replace: Callable[[Path], bool]) -> None:
    if not may_take(out, may_replace):
        raise OutputError(f"Another process has created {out} in the meantime. Choose another folder.")
    old = out.with_name(f".{out.name}.replaced-{secrets.token_hex(4)}")
    try:
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    # Not earlier: other processes need these files until the folder has its final name.
    for name in (STEPS_FILE, LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up_after_killed(out: Path) -> None:
    """Clean up after killed processes: restore a renamed `out`, or delete their folders."""
    pattern = f".{escape(out.name)}"
    for old in out.parent.glob(f"{pattern}.replaced-*"):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif _is_abandoned(partial_folder(out)):  # otherwise its process is about to replace `out`
            old.rename(out)
    for folder in out.parent.glob(f"{pattern}.building-*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether no running process fills the folder."""
    if not folder.exists():
        return True
    lock = take_lock(folder / LOCK_FILE)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _sync(path: Path) -> None:
    """Wait until a file is on disk, so that the record never lists a file that a power failure destroyed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
