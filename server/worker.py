"""A thread that does work in order: one is the hearing thread, one the speech thread."""

import queue
import threading
from collections.abc import Callable

from pplex.server.logs import LOGGER

Work = Callable[[], None]


class Worker:
    """Does work in the order it was given, in one thread, until it is stopped."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def put(self, work: Work) -> None:
        """From any thread."""
        self._queue.put(work)

    def stop(self) -> None:
        """Do what is there, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:  # one conversation's: the others go on
                LOGGER.exception("a message, a reply or a recording was lost")
