"""Files of weights in memory: mapped, with pages that are freed while a library copies them, or in large pages.

Called by `runtime.ort` and `runtime.kernel_graph`.
"""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

GIVE_BACK_SECONDS = 0.1
_PIECE = 1 << 26  # bytes that are read at a time


class MappedFile:
    """All bytes of a file; they stay readable after the file is renamed or deleted."""

    def __init__(self, path: Path):
        self.name = path.name
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """Free the pages that were read, repeatedly. A page that is read again is loaded again.

        Otherwise a library that packs weights would need memory for the weights and for its copies.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._give_back_until, args=(done,), name="giving back")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _give_back_until(self, done: threading.Event) -> None:
        while hasattr(mmap, "MADV_DONTNEED") and not done.wait(GIVE_BACK_SECONDS):
            self.bytes.madvise(mmap.MADV_DONTNEED)


class HugePages:
    """All bytes of a file, in pages of 2 MB if the system has them.

    A step reads these weights once. In pages of 4 KB, the processor spends much of that time on looking up addresses.
    """

    def __init__(self, path: Path):
        self.name = path.name
        size = path.stat().st_size
        self.bytes = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a system without them
                self.bytes.madvise(mmap.MADV_HUGEPAGE)
        with path.open("rb", buffering=0) as file:
            self._fill(file, size)

    def _fill(self, file: RawIOBase, size: int) -> None:
        """Read the file. Raises ValueError if it has become shorter."""
        at = 0
        with memoryview(self.bytes) as data:
            while at < size:
                read = file.readinto(data[at : min(at + _PIECE, size)])
                if not read:
                    raise ValueError(f"{self.name} has {at} bytes, not {size}")
                at += read
