"""Times a whole frame of a bundle, stage by stage, with all sessions speaking at once."""

import time
from pathlib import Path

import numpy as np

from pplex.measure.conversation import WARM_UP_FRAMES, usual_prompt
from pplex.measure.machine import machine
from pplex.measure.memory import peak_memory_mb
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.session import Runtime

ENGINES = ("onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt")


def bench_frame(
    bundle: Path, sessions: int, frames: int, threads: int | None, device: str | None = None
) -> BenchReport:
    """Time `frames` frames of `sessions` primed sessions that hear noise and sample at the default settings.

    On a GPU the graphs of a frame are captured as one and have one row. `threads` and `device` as in `Runtime`.
    """
    began = time.perf_counter()
    runtime = Runtime.load(bundle, slots=sessions, threads=threads, device=device)
    loaded = time.perf_counter()
    prompt = usual_prompt(runtime.bundle)
    opened = [runtime.open(*prompt, seed=0)]
    primed = time.perf_counter()
    opened += [runtime.open(*prompt, seed=i) for i in range(1, sessions)]
    noise = np.random.default_rng(0).normal(0, 0.05, (frames, runtime.config.frame_size)).astype(np.float32)
    stages: dict[str, list[float]] = {name: [] for name in runtime.stages.seconds}
    whole = []
    for frame in np.concatenate([noise[:WARM_UP_FRAMES], noise]):
        before, start = dict(runtime.stages.seconds), time.perf_counter()
        runtime.step(dict.fromkeys(opened, frame))
        whole.append(time.perf_counter() - start)
        for name, seconds in runtime.stages.seconds.items():
            stages[name].append(seconds - before[name])
    rest = np.array(whole) - np.sum(list(stages.values()), axis=0)
    rows = {**stages, "host": rest, "frame": whole}
    timings = {name: Timing.of(seconds[WARM_UP_FRAMES:]) for name, seconds in rows.items()}
    figures = {
        "sessions": sessions,
        "frames": frames,
        "device": runtime.stages.device.name,
        "late frames": int((np.array(whole[WARM_UP_FRAMES:]) * 1000 > runtime.config.frame_ms).sum()),
        "load s": round(loaded - began, 2),
        "prime ms": round(1000 * (primed - loaded), 1),
        "peak memory MB": peak_memory_mb(),
    }
    return BenchReport(f"frame of {bundle.name}", timings, figures, machine(threads, *ENGINES, "numpy"))
