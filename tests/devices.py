"""A device for tests: a CudaDevice on delayed_cuda.py. Its memory is not the host's and its work waits, so tests find a
missing copy or wait."""

from unittest.mock import patch

from delayed_cuda import DelayedCuda

from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.device import Call, HostDevice


class QueueDevice(CudaDevice, HostDevice):
    """Host memory in place of a GPU's. Enqueued work runs in `synchronize`.

    Executors for the processor enqueue their work, as on the host. `free`: bytes that can be allocated.
    """

    def __init__(self, free: int = 1 << 40) -> None:
        self._delayed = DelayedCuda(free)
        with patch("pplex.runtime.cuda_device._library", lambda: self._delayed):
            super().__init__()

    def enqueue(self, work: Call) -> None:
        self._delayed.enqueue(work, self._stream)

    @property
    def free(self) -> int:
        return self._delayed.free

    @free.setter
    def free(self, nbytes: int) -> None:
        self._delayed.free = nbytes

    @property
    def replays(self) -> int:
        return self._delayed.replays

    @property
    def synchronized(self) -> int:
        return self._delayed.waits

    @property
    def copied(self) -> list[str]:
        """The direction of each copy that has run: "up", "down", "within" the device."""
        return self._delayed.copied

    @property
    def recording(self) -> list[Call] | None:
        """The capture that is being made."""
        return self._delayed.capture
