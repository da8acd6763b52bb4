"""Writing a file so that it appears under its name only when it is whole."""

import os
import secrets
from pathlib import Path

from pplex.runtime.errors import OutputError

STANDARD_STREAM = "-"


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raise OutputError if `target` cannot be a file to write, before any work is done for it; "-" always can."""
    path = Path(target)
    if os.fspath(target) == STANDARD_STREAM:
        return
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Name a file.")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it. Raises OutputError, and then `path` is as it was."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Name another file.") from error
