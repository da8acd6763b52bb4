"""A file of weights that is mapped, and whose memory is given back while what reads it makes copies."""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIVE_BACK_SECONDS = 0.1


class MappedFile:
    """All bytes of a file, readable as long as this is kept, whatever becomes of its name."""

    def __init__(self, path: Path):
        self.name = path.name
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """While it lasts, let go of the memory of what was read: it is mapped again when it is read again.

        A library that packs copies of weights would else need the memory of both.
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
