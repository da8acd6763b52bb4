"""How fast this machine's processors read memory: the floor under every step that reads weights once."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pplex.runtime.ort import available_threads

NBYTES = 2 << 30  # more than any cache


class Bandwidth:
    """Reads the same memory, with as many threads as an engine would use, whenever it is asked."""

    def __init__(self, threads: int | None):
        self._pool = ThreadPoolExecutor(threads or available_threads())
        memory = np.ones(NBYTES // 8)  # ones: pages that were never written to are all one page of zeros
        self._parts = np.array_split(memory, threads or available_threads())

    def measure(self) -> float:
        """Bytes a second, by one pass over all of it."""
        began = time.perf_counter()
        list(self._pool.map(np.sum, self._parts))
        return NBYTES / (time.perf_counter() - began)
