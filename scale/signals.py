"""Waits for SIGTERM and Ctrl-C. Called by `scale.launch`."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.2  # between looks


class Signals:
    """Counts signals after `listen`, and ignores them after `ignore`. The process ends without its former handlers."""

    def __init__(self) -> None:
        self._count = 0

    def listen(self) -> None:
        """Replace the handlers, also Ray's, which would end the process."""
        for number in NUMBERS:
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal."""
        if self._count:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on, signals do nothing: what was started must end, whatever the user presses."""
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

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
