"""Writing files so that they appear under their names only when all of them are whole."""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from pplex.runtime.errors import OutputError

STANDARD_STREAM = "-"


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raise OutputError if `write_files` could not write `target`: for before the work of making what goes in it."""
    name = os.fspath(target)
    if name == STANDARD_STREAM:
        return
    path = Path(name).absolute()
    try:
        if not name or path.is_dir():
            raise OutputError(f"{name or 'An empty name'} is a folder. Name a file.")
        if not path.parent.is_dir():
            raise OutputError(f"{name} cannot be written: there is no folder {Path(name).parent}. Make it first.")
        if _takes_a_new_file(path):
            temporary = _beside(path)
            temporary.touch()
            temporary.unlink()
    except OSError as error:  # also for a name too long to ask about
        raise _refusal(name, error) from error


def check_distinct(*targets: str) -> None:
    """Raise OutputError if two of the names are one file, which the last one written would be left of."""
    paths = [Path(target).resolve() for target in targets if target != STANDARD_STREAM]
    twice = next((path for path in paths if paths.count(path) > 1 and _takes_a_new_file(path)), None)
    if twice is not None:
        raise OutputError(f"{twice} is named twice: one would overwrite the other. Name another file.")


def write_files(contents: Mapping[str, bytes]) -> None:
    """Write every target's bytes; "-" is standard output.

    Files take their names when all of them are written, links are followed, and devices and pipes are written to.
    Raises OutputError, and then files are as they were.
    """
    staged: dict[Path, Path] = {}
    target = ""
    try:
        for target, data in contents.items():
            path = Path(target).resolve()
            if target != STANDARD_STREAM and _takes_a_new_file(path):
                temporary = _beside(path)
                staged[temporary] = path
                temporary.write_bytes(data)
        for temporary, path in staged.items():
            temporary.replace(path)
        for target, data in contents.items():
            if target == STANDARD_STREAM:
                _write_standard_output(data)
            elif not _takes_a_new_file(Path(target)):
                Path(target).write_bytes(data)
    except OSError as error:
        raise _refusal(target, error) from error
    finally:
        for temporary in staged:
            temporary.unlink(missing_ok=True)


def _takes_a_new_file(path: Path) -> bool:
    """Whether a file can be put in the place of `path`: not of a device, nor of a pipe."""
    return path.is_file() or not path.exists()


def _beside(path: Path) -> Path:
    return path.resolve().with_name(f".{secrets.token_hex(8)}.part")


def _refusal(name: str, error: OSError) -> OutputError:
    return OutputError(f"{name} cannot be written: {error.strerror}. Name another file.")


def _write_standard_output(data: bytes) -> None:
    if sys.stdout is None:
        raise OutputError("There is no standard output to write to: it is closed. Name a file.")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
