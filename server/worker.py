"""A thread that does work in order. `server.app` makes two: the hearing thread and the speech thread."""

import queue
import threading
from collections.abc import Callable
from contextvars import Context, copy_context

from pplex.server.logs import LOGGER

Work = Callable[[], None]


class Worker:
    """Does work in the order in which it was put, in one thread, until it is stopped."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[Context, Work] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def put(self, work: Work) -> None:
        """Add work, from any thread. It runs in the caller's context, so that its log lines name the conversation."""
        self._queue.put((copy_context(), work))

    def stop(self) -> None:
        """Do the remaining work, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            context, work = item
            context.run(_attempt, work)


def _attempt(work: Work) -> None:
    try:
        work()
    except Exception:  # an error of one conversation: the others continue
        LOGGER.exception("a message, a reply or a recording was lost")
