"""The interface of a clock that times work on a device: used by `bench.sweep` and `bench.bandwidth`."""

from typing import Protocol

from pplex.runtime.device import Mark


class Clock(Protocol):
    """A device that records timestamps on its stream: see runtime/device.py."""

    def mark(self) -> Mark:
        """Record a timestamp on the stream."""

    def elapsed_ms(self, first: Mark, last: Mark) -> float:
        """Milliseconds between two marks that the device has reached."""

    def synchronize(self) -> None:
        """Wait until all enqueued work is done."""
