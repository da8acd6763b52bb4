"""The thread between the engine and the event loop: Opus, and recordings, off both."""

import queue
import threading
from collections.abc import Callable
from functools import partial

from pplex.server.engine import Spoken
from pplex.server.logs import LOGGER

Work = Callable[[], None]


class SpeechThread:
    """Does work in the order it was given, in one thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="speech", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def answer(self, batch: list[Spoken]) -> None:
        """Hand each reply of an engine call to its conversation."""
        for spoken in batch:
            self.put(partial(spoken.seat.answer, spoken))

    def put(self, work: Work) -> None:
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
                LOGGER.exception("a reply or a recording was lost")
