"""A lock between processes, by a file. Called by `runtime.voice_changes` and `export.staging`."""

import fcntl
import os
from pathlib import Path


def take_lock(path: Path) -> int | None:
    """The open lock file at `path`, None if another process holds it. The system releases it when the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # locked, or renamed since it was opened
        pass
    os.close(descriptor)
    return None
