"""Runs a long conversation as fast as possible: do frames slow down, does memory grow, does the clock drift?

    frame     0 ---- 3,000 ======== 4,000 -------------------- 37,000 ======== 38,000
                     early window         allocations traced          last window
                              resident size                           resident size

The machine itself may be slower in one window than in the other. So both windows also time constant work, the yardstick.
"""

import gc
import time
import tracemalloc
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pplex.bench.frame import ENGINES
from pplex.measure.conversation import WARM_UP_FRAMES, usual_prompt
from pplex.measure.machine import machine
from pplex.measure.memory import resident_mb
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.arrays import Pcm
from pplex.runtime.backend import Backend
from pplex.runtime.device import Buffer
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.runtime.synthetic_speech import speech_like

FRAMES, WINDOW = 38_000, 1_000
FIRST_TIMED = 3_000  # the released model's ring is full from here on: every step reads the same number of entries
SPEECH_FRAMES = 375  # half a minute, repeated
YARDSTICK_EVERY = 4  # frames of a window

Progress = Callable[[], Any]


@dataclass(frozen=True)
class Windows:
    """The timed frames: `length` frames from `first` on, and the last `length`."""

    first: int
    length: int
    frames: int

    @classmethod
    def of(cls, frames: int, length: int) -> "Windows":
        """Two windows of up to a quarter of `frames`, at least that far apart; the first is at FIRST_TIMED if possible."""
        length = min(length, frames // 4)
        return cls(min(FIRST_TIMED, frames - 3 * length), length, frames)

    @property
    def early_end(self) -> int:
        return self.first + self.length

    @property
    def last(self) -> int:
        return self.frames - self.length


def bench_soak(
    bundle: Path,
    frames: int = FRAMES,
    window: int = WINDOW,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress = lambda: None,
    memory_window: int | None = None,
) -> BenchReport:
    """Step one session for `frames` frames of synthetic speech at the default settings; calls `progress` after each.

    `threads`, `device` and `memory_window` as in `Runtime`. The chunks of rebuilds run between the frames.
    """
    windows = Windows.of(frames, window)
    runtime = Runtime.load(bundle, slots=1, threads=threads, device=device, memory_window=memory_window)
    talk, yardstick = _LongConversation(runtime, progress), _Yardstick(runtime)
    talk.step_to(windows.first)
    early = _timed(talk, yardstick, windows.early_end)
    more = _held_more(talk, windows.last)
    last = _timed(talk, yardstick, frames)
    return BenchReport(
        f"soak of {bundle.name}",
        {
            "frame, early window": Timing.of(early.frames),
            "frame, last window": Timing.of(last.frames),
            "yardstick, early window": Timing.of(early.yardstick),
            "yardstick, last window": Timing.of(last.yardstick),
        },
        {
            "frames": frames,
            "minutes of audio": round(frames * runtime.config.frame_ms / 60_000, 1),
            "device": runtime.stages.device.name,
            "early window": f"frames {windows.first:,} to {windows.early_end:,}",
            "last window": f"frames {windows.last:,} to {frames:,}",
            "yardstick": f"the four graphs on a state that stays the same, after every {YARDSTICK_EVERY}th frame",
            **_ratios(early, last),
            "ring entries read, early": early.ring_length,
            "ring entries read, last": last.ring_length,
            "resident MB after the early window": early.resident_mb,
            "resident MB at the end": last.resident_mb,
            "bytes allocated between the windows and not freed": more,
            **talk.clock(),
            **talk.rebuilds(),
        },
        machine(threads, *ENGINES, "numpy"),
    )


@dataclass
class _Window:
    """Seconds of each frame and of each run of the yardstick; ring length and memory at the end."""

    frames: list[float] = field(default_factory=list)
    yardstick: list[float] = field(default_factory=list)
    ring_length: int = 0
    resident_mb: float | None = None


def _timed(talk: "_LongConversation", yardstick: "_Yardstick", end: int) -> _Window:
    gc.collect()
    window = _Window()
    while talk.frames < end:
        window.frames.append(talk.step())
        if talk.frames % YARDSTICK_EVERY == 0:
            window.yardstick.append(yardstick.run())
    window.ring_length, window.resident_mb = talk.runtime.stages.ring_length, resident_mb()
    return window


def _held_more(talk: "_LongConversation", end: int) -> int:
    """Step to frame `end`; returns the bytes of Python objects and numpy arrays that these steps allocated and still hold.

    These frames are not timed, because tracing slows them down.
    """
    gc.collect()
    tracemalloc.start()
    try:
        talk.step_to(end)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def _ratios(early: _Window, last: _Window) -> dict[str, float]:
    """Slowdown in the last window: of the frames, of the yardstick, and of the frames relative to the yardstick."""
    frames, machines = (
        float(np.median(b) / np.median(a)) for a, b in ((early.frames, last.frames), (early.yardstick, last.yardstick))
    )
    return {
        "median frame, last window / early window": round(frames, 4),
        "yardstick, last window / early window": round(machines, 4),
        "median frame relative to the yardstick, last window / early window": round(frames / machines, 4),
    }


class _LongConversation:
    """A session that hears repeated speech, and counts frames and samples."""

    def __init__(self, runtime: Runtime, progress: Progress):
        self.runtime, self._progress = runtime, progress
        size = runtime.config.frame_size
        self._speech = speech_like(SPEECH_FRAMES, size, seed=0).reshape(-1, size)  # [F, 1920]
        self._session = runtime.open(*usual_prompt(runtime.bundle), seed=0)
        self._first_step = int(runtime.ring.step[self._session.row])
        # Opening a session decodes the prompt's last frame.
        self._first_decoded = self._codec_frames("mimi_decode")
        self.frames = self._heard = self._said = self._steps = 0
        self._rebuilt = 0
        self._chunks = array("d")  # seconds of each chunk of a rebuild

    def step(self) -> float:
        """Step one frame; returns its seconds."""
        pcm: Pcm = self._speech[self.frames % SPEECH_FRAMES]
        began = time.perf_counter()
        reply = self._session.step(pcm)
        seconds = time.perf_counter() - began
        self.frames += 1
        self._heard += pcm.size
        self._said += int(np.isfinite(reply.pcm).sum())
        self._rebuild_between_frames()
        self._progress()
        return seconds

    def _rebuild_between_frames(self) -> None:
        self._steps = max(self._steps, int(self.runtime.ring.step[self._session.row]) - 1)
        began, more = time.perf_counter(), self.runtime.work()
        if more or self.runtime.memory.rebuilt > self._rebuilt:
            self._rebuilt = self.runtime.memory.rebuilt
            self._chunks.append(time.perf_counter() - began)

    def rebuilds(self) -> dict[str, float]:
        """Of the memory window: the number of rebuilds, the chunks, and the most steps that the session has had."""
        if self.runtime.memory.window is None:
            return {}
        chunks = Timing.of(list(self._chunks))
        return {
            "memory window": self.runtime.memory.window,
            "most steps": self._steps,
            "rebuilds": self.runtime.memory.rebuilt,
            "chunks of rebuilds": len(self._chunks),
            "median chunk ms": round(chunks.median_ms, 3),
            "longest chunk ms": round(1000 * max(self._chunks), 3),
        }

    def step_to(self, end: int) -> None:
        while self.frames < end:
            self.step()

    def clock(self) -> dict[str, float]:
        """Samples in and out, the frame count of each part, and the largest deviation from the number of steps."""
        stages, row, size = self.runtime.stages, self._session.row, self.runtime.config.frame_size
        # A rebuild renumbers the steps.
        steps = (
            {}
            if self.runtime.memory.rebuilt
            else {
                "token ring": int(self.runtime.ring.step[row]) - self._first_step,
                # The position of the last step is one less than the token ring's step before it.
                "temporal transformer": int(stages.position[row]) + 2 - self._first_step,
            }
        )
        counts = {
            "session": self._session.frame,
            **steps,
            "encoder": self._codec_frames("mimi_encode"),
            "decoder": self._codec_frames("mimi_decode") - self._first_decoded,
        }
        samples = {"samples of the user": self._heard, "finite samples of the agent": self._said}
        off = [count - self.frames for count in counts.values()] + [n / size - self.frames for n in samples.values()]
        return {
            **samples,
            f"frames stepped x {size}": self.frames * size,
            **{f"frames counted by the {name}": count for name, count in counts.items()},
            "clock drift in frames": max(off, key=abs),
        }

    def _codec_frames(self, graph: str) -> int:
        stages, position = self.runtime.stages, np.zeros(1, np.int64)
        state = stages.engines[graph].state["position"].rows(self._session.row, 1)
        stages.device.copy(Buffer.of(position).whole, state.whole)()
        stages.device.synchronize()
        return int(position[0]) // self.runtime.config.mimi.steps_per_frame


class _Yardstick:
    """The engines' work for a frame with the runtime's weights, but with constant inputs, state and KV caches.

    If it slows down, the machine has slowed down. It leaves out everything that a long conversation may slow down: the
    Python of the loop, the sampling noise, and the state of model and codec.
    """

    def __init__(self, runtime: Runtime):
        executors = runtime.stages.executors
        self._stages = Stages(runtime.bundle, 1, device=Backend(runtime.stages.device, lambda *given: executors))
        for _ in range(WARM_UP_FRAMES):
            self.run()

    def run(self) -> float:
        """Seconds for one frame. The slot is inactive, so the codec's state stays; other graphs rewrite the same values."""
        began = time.perf_counter()
        self._stages.run_frame(1)
        return time.perf_counter() - began
