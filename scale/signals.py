"""Waits for SIGTERM and Ctrl-C. Called by `scale.launch`."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

LOOK_S = 0.5  # between looks at work in a thread


class Signals:
    """Counts signals while it is open; after that they have their former meaning."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Event()

    def __enter__(self) -> "Signals":
        self._former = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self._changed.set()

    def wait(self, count: int) -> None:
        """Wait for this many signals in all."""
        while self._count < count:
            self._changed.wait()
            self._changed.clear()

    def during(self, work: Callable[[], None], count: int) -> None:
        """Do `work` in a thread, and wait for its end or for this many signals in all."""
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive() and self._count < count:
            thread.join(LOOK_S)
