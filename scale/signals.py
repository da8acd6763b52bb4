"""Waits for SIGTERM and Ctrl-C. Called by `scale.launch`."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.2  # between looks


class Signals:
    """Counts signals while it is open; after that they have their former meaning."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> "Signals":
        self._former = {number: signal.signal(number, self._on_signal) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1

    def wait(self, count: int) -> None:
        """Wait for this many signals in all."""
        while self._count < count:
            time.sleep(LOOK_S)  # a signal that another thread of Ray receives does not wake this one

    def during(self, work: Callable[[], None], count: int) -> None:
        """Do `work` in a thread, and wait for its end or for this many signals in all."""
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive() and self._count < count:
            thread.join(LOOK_S)


@contextmanager
def ignored_signals() -> Iterator[None]:
    """Ignore SIGTERM and Ctrl-C."""
    former = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
