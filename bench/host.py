"""Times the Python code around the engines: executors that do nothing step the sessions."""

import time
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplex.measure.conversation import WARM_UP_FRAMES
from pplex.measure.machine import machine
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.device import Buffer, Call, HostDevice
from pplex.runtime.engine import Executor
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.session import Reply, Runtime, Session

SESSIONS = (1, 8, 64)
COUNTED_FRAMES = 20  # with counted allocations; counting is too slow to time these frames


def bench_host(bundle: Path, sessions: Sequence[int], frames: int) -> BenchReport:
    """Time `frames` steps for each number in `sessions`. Sessions sample at the default settings, and each says a word."""
    timings, figures = dict[str, Timing](), dict[str, Any]({"frames": frames})
    for count in sessions:
        host = IdleHost(open_bundle(bundle), count)
        name = f"{count} session{'s' * (count > 1)}"
        timings[name] = Timing.of([host.step_seconds() for _ in range(WARM_UP_FRAMES + frames)][WARM_UP_FRAMES:])
        figures[f"{name}, bytes allocated besides the replies"] = max(host.step_nbytes() for _ in range(COUNTED_FRAMES))
    return BenchReport(f"host part of {bundle.name}", timings, figures, machine(1, "numpy"))


class IdleHost:
    """Sessions that all speak at once, in a runtime whose engines leave their outputs unchanged."""

    def __init__(self, bundle: Bundle, sessions: int):
        self._device = _IdleDevice()
        backend = Backend(self._device, _idle_executors)
        self.runtime = Runtime(bundle, slots=sessions, batches=[sessions], device=backend)
        opened = [self.runtime.open(seed=seed) for seed in range(sessions)]
        self.runtime.stages.text_token[...] = self.runtime.tokenizer.encode("hello")[0]
        noise = np.random.default_rng(0).normal(0, 0.05, (sessions, self.runtime.config.frame_size))
        self._frames = dict(zip(opened, noise.astype(np.float32), strict=True))

    def step(self) -> dict[Session, Reply]:
        return self.runtime.step(self._frames)

    def step_seconds(self) -> float:
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began

    def step_nbytes(self) -> int:
        """Peak bytes of numpy arrays and Python objects that a step allocates, without its replies' arrays.

        Replies are created after the engines have run, so memory is counted separately until then.
        """
        peaks = list[int]()

        def at_the_engines() -> None:
            peaks.append(_peak_nbytes())
            tracemalloc.reset_peak()

        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            self._device.instead = at_the_engines
            replies = self.step()
            replied = sum(reply.pcm.nbytes + reply.tokens.nbytes for reply in replies.values())
            return max(*peaks, _peak_nbytes() - replied) - before
        finally:
            tracemalloc.stop()
            self._device.instead = _nothing


def _peak_nbytes() -> int:
    return tracemalloc.get_traced_memory()[1]


# Engines that do nothing.


class _IdleDevice(HostDevice):
    """Calls `instead` in place of captured work. By default it does nothing, like a GPU that takes no time."""

    name, captures = "none", True

    def __init__(self) -> None:
        self.instead: Call = _nothing

    def capture(self, work: Call) -> Call:
        return lambda: self.instead()


@dataclass
class _IdleExecutor:
    spec: GraphSpec
    alignment: int = 1
    capturable: bool = True
    fixed_rings: bool = False
    one_thread: bool = False

    def bind(self, tensors: Mapping[str, Buffer], repeated: bool) -> Call:
        return _nothing

    def save_cache(self) -> None:
        pass


def _idle_executors(bundle: Bundle, slots: int, spare: int) -> dict[str, Executor]:
    return {name: _IdleExecutor(spec) for name, spec in bundle.specs.items()}


def _nothing() -> None:
    pass
