"""Files that a user names: one message if they cannot be read, and outputs written completely or not at all.

Used by all packages.
"""

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pplex.runtime.errors import AccessError, OutputError

STANDARD_STREAM = "-"
_NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_RIGHTS = "Give this user the right to it and to the folders it is in, or run the command as another user."
_ADVICE = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "Name another place.",
    errno.ENOSPC: "Make room, or name another disk.",
    errno.EDQUOT: "Make room, or name another disk.",
    errno.EMFILE: "Allow more open files: ulimit -n 4096",
    errno.ENFILE: "End other programs that keep files open.",
    errno.EIO: "Check the disk, or copy the file again.",
    errno.ESTALE: "Check the network drive, and run the command again.",
}


def is_file(path: Path) -> bool:
    """Whether `path` is a file. Raises AccessError if this user may not look.

    `Path.is_file` is not used, because its errors depend on the version of Python.
    """
    found = _look(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder. Raises AccessError like `is_file`."""
    found = _look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_there(path: Path) -> bool:
    """Whether `path` exists. Raises AccessError like `is_file`."""
    return _look(path) is not None


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below it, sorted; [] if the folder does not exist. Raises AccessError."""

    def refuse(error: OSError) -> None:
        raise _refused(error)

    walk = os.walk(folder, onerror=refuse) if is_folder(folder) else ()
    return sorted(Path(parent) / name for parent, _, names in walk for name in names)


def folders_below(folder: Path) -> list[Path]:
    """All folders below a folder, in any order, each once: also those that links lead to. Raises AccessError."""
    root, seen = os.path.realpath(folder), set[str]()

    def below(parent: Path) -> Iterator[Path]:
        for path in _entries(parent):
            real = os.path.realpath(path)
            if not is_folder(path) or real in seen or (path.is_symlink() and _is_in(real, root)):
                continue  # a link to what is found anyway could be a circle
            seen.add(real)
            yield path
            yield from below(path)

    return list(below(folder)) if is_folder(folder) else []


def read_text(path: Path) -> str:
    """A file's text. Raises AccessError if it may not be read, ValueError if it is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise _refused(error, path) from error


def check_readable(*paths: Path) -> None:
    """Raise AccessError that names all existing files that may not be read; libraries report them as missing."""
    reasons, advice = [], dict[str, None]()
    for path in filter(is_file, paths):
        try:
            path.open("rb").close()
        except OSError as error:
            reasons.append(_reason(error, path))
            advice[_advice(error)] = None
    if reasons:
        raise AccessError("\n".join([*reasons, *advice]))


def access_error(error: OSError) -> AccessError | None:
    """The message for an error of the machine, such as a missing permission or a full disk; None for our own defect."""
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error.strerror):  # of the module tempfile
        return AccessError("No folder for temporary files can be written to. Name one: TMPDIR=FOLDER pplex-export ...")
    return _refused(error) if error.errno in _ADVICE else None


def _refused(error: OSError, path: Path | None = None) -> AccessError:
    return AccessError(f"{_reason(error, path)}\n{_advice(error)}")


def _reason(error: OSError, path: Path | None) -> str:
    name = path or error.filename
    return f"{f'{name} cannot be used: ' if name else ''}{error.strerror or error}."


def _advice(error: OSError) -> str:
    return _ADVICE.get(error.errno or 0, "Check its name and the disk.")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _refused(error, folder) from error


def _is_in(path: str, folder: str) -> bool:
    return Path(folder) in (Path(path), *Path(path).parents)


def _look(path: Path) -> os.stat_result | None:
    """The status of `path`, None if it does not exist."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise _refused(error, path) from error
    except ValueError:  # a null character in the name
        return None


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raise OutputError if `write_files` cannot write `target`. Call it before the content is made."""
    name = os.fspath(target)
    if name == STANDARD_STREAM:
        _check_standard_output()
        return
    path = Path(name).absolute()
    try:
        if not name or path.is_dir():
            raise OutputError(f"{name or 'An empty name'} is a folder. Name a file.")
        if not path.parent.is_dir():
            raise OutputError(
                f"{name} cannot be written: the folder {Path(name).parent} does not exist. Make it first."
            )
        if _takes_a_new_file(path):
            temporary = _beside(path)
            temporary.touch()
            temporary.unlink()
    except OSError as error:  # also for a name that is too long
        raise _refusal(name, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those it is in. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"{folder} is not a folder, or is below a file. Name another folder.") from error
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}. Name another folder.") from error


def check_distinct(*targets: str) -> None:
    """Raise OutputError if two names are one file: the last one written would overwrite the other."""
    paths = [_real(target) for target in targets if target != STANDARD_STREAM]
    twice = next((path for path in paths if paths.count(path) > 1 and _takes_a_new_file(path)), None)
    if twice is not None:
        raise OutputError(f"{twice} is named twice: one would overwrite the other. Name another file.")


def write_files(contents: Mapping[str, bytes]) -> None:
    """Write every target's bytes; "-" is standard output.

    Files get their names after all are written. Links are followed. Devices and pipes are written directly. If OutputError
    is raised, no file has changed.
    """
    staged: dict[Path, Path] = {}
    target = ""
    try:
        for target, data in contents.items():
            path = _real(target)
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
            with suppress(OSError):
                temporary.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what a killed `write_files` left in a folder. No other process may write there."""
    for path in folder.glob(".*.part"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.part", path.name):
            with suppress(OSError):
                path.unlink()


def _takes_a_new_file(path: Path) -> bool:
    """Whether a new file can replace `path`, which must not be a device or a pipe."""
    return os.path.isfile(path) or not os.path.exists(path)


def _beside(path: Path) -> Path:
    return _real(path).with_name(f".{secrets.token_hex(8)}.part")


def _real(path: str | os.PathLike[str]) -> Path:
    """Follow links, including circular ones, for which `Path.resolve` raises its own error."""
    return Path(os.path.realpath(path))


def _refusal(name: str, error: OSError) -> OutputError:
    return OutputError(f"{name} cannot be written: {error.strerror}. Name another file.")


def _check_standard_output() -> None:
    if sys.stdout is None:
        raise OutputError("Standard output is closed. Name a file.")


def _write_standard_output(data: bytes) -> None:
    _check_standard_output()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
