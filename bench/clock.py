"""What work is timed by, whatever enqueues it and wherever it is done."""

from typing import Protocol

from pplex.runtime.device import Mark


class Clock(Protocol):
    """A device whose work is timed where it is done: see runtime/device.py."""

    def mark(self) -> Mark:
        """Enqueue the taking of the time."""

    def elapsed_ms(self, first: Mark, last: Mark) -> float:
        """Milliseconds between two marks that have passed."""

    def synchronize(self) -> None:
        """Wait for what was enqueued."""
