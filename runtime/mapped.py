"""A memory-mapped file of weights that frees its pages while a library copies from it. Called by `runtime.ort`."""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIVE_BACK_SECONDS = 0.1


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
