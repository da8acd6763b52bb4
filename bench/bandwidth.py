"""Measures the memory bandwidth of the processors or the GPU: it limits every step that reads its weights once.

Called by the other benchmarks.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from pplex.bench.clock import Clock
from pplex.runtime.device import Buffer, Call, Device
from pplex.runtime.ort import available_threads

NBYTES = 2 << 30  # more than any cache
COPIES = 20  # timed on a GPU


class Bandwidth:
    """Measures how fast the processors read memory, with as many threads as an engine uses."""

    def __init__(self, threads: int | None):
        self._pool = ThreadPoolExecutor(threads or available_threads())
        memory = np.ones(NBYTES // 8)  # not zeros: all unwritten pages share one page of zeros
        self._parts = np.array_split(memory, threads or available_threads())

    def measure(self) -> float:
        """Bytes a second of one pass over the memory."""
        began = time.perf_counter()
        list(self._pool.map(np.sum, self._parts))
        return NBYTES / (time.perf_counter() - began)


def copy_bandwidth(device: Device) -> float:
    """Bytes a second, read and written, of a copy within the device's memory."""
    nbytes = NBYTES
    source, target = (device.zeros((nbytes,), "uint8") for _ in range(2))
    pattern = np.random.default_rng(0).integers(0, 256, min(nbytes, 1 << 24), np.uint8)
    for start in range(0, nbytes, len(pattern)):
        part = source.part(0, start, min(len(pattern), nbytes - start))
        device.copy(part, Buffer.of(pattern).part(0, 0, part.width))()
    return copied_per_second(device, device.copy(target.whole, source.whole), nbytes)


def copied_per_second(clock: Clock, copy: Call, nbytes: int) -> float:
    """Bytes a second, read and written, of `copy`, which copies `nbytes`: the median of COPIES calls after a warm-up."""
    marks = [clock.mark()]
    for _ in range(1 + COPIES):
        copy()
        marks.append(clock.mark())
    clock.synchronize()
    seconds = [clock.elapsed_ms(*pair) / 1000 for pair in pairwise(marks)][1:]
    return 2 * nbytes / float(np.median(seconds))
