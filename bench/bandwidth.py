"""How fast memory is read, by this machine's processors or its GPU: the floor under every step that reads weights once."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from pplex.runtime.device import Buffer, Device
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


def copy_bandwidth(device: Device, copies: int = 20) -> float:
    """Bytes a second that a copy within the device's memory reads and writes, the median of `copies`."""
    nbytes = NBYTES
    source, target = (device.zeros((nbytes,), "uint8") for _ in range(2))
    pattern = np.random.default_rng(0).integers(0, 256, min(nbytes, 1 << 24), np.uint8)
    for start in range(0, nbytes, len(pattern)):
        part = source.part(0, start, min(len(pattern), nbytes - start))
        device.copy(part, Buffer.of(pattern).part(0, 0, part.width))()
    copy, marks = device.copy(target.whole, source.whole), []
    for _ in range(copies + 1):
        marks.append(device.mark())
        copy()
    marks.append(device.mark())
    device.synchronize()
    seconds = [device.elapsed_ms(*pair) / 1000 for pair in pairwise(marks)][1:]  # the first one warms up
    return 2 * nbytes / float(np.median(seconds))
