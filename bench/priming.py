"""Times priming (prefill): forced steps one by one and in chunks, and opening a session with a known persona."""

import time
from pathlib import Path

import numpy as np

from pplex.bench.frame import ENGINES
from pplex.measure.machine import machine
from pplex.measure.report import BenchReport, Timing
from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import PromptError
from pplex.runtime.graphs import MAX_STEPS
from pplex.runtime.priming import PRIMING_STEPS
from pplex.runtime.prompt import make_prompt
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.runtime.synthetic_speech import speech_like

STEPS = 300  # a voice and a long persona
CHUNKS = (1, 16, 32, PRIMING_STEPS, 128, MAX_STEPS)
ROUNDS = 3  # all sizes take turns in each round, so a busy machine slows all of them
FRAMES = 20  # of conversation in each round


def bench_priming(
    bundle: Path, steps: int | None = None, threads: int | None = None, device: str | None = None
) -> BenchReport:
    """Time a prompt of `steps` random tokens in chunks of each size, and opening sessions with such prompts.

    `steps`: 300 by default, or the KV cache's capacity if smaller. Raises PromptError if `steps` exceeds the capacity.
    `threads` and `device` as in `Runtime`.
    """
    runtime = Runtime.load(bundle, slots=1, threads=threads, device=device)
    config, random = runtime.config, np.random.default_rng(0)
    steps = _checked_steps(config, steps)
    codes = _random_codes(config, steps, random)
    sizes = sorted({min(size, steps) for size in CHUNKS})
    for size in sizes:  # warm up every chunk length
        _prompt_seconds(runtime.stages, codes[: size + steps % size], size)

    prompts: dict[int, list[float]] = {size: [] for size in sizes}
    new, seen, frames = list[float](), list[float](), list[float]()
    opening = _Opening(runtime, steps)
    for _ in range(ROUNDS):
        for size in sizes:
            prompts[size].append(_prompt_seconds(runtime.stages, codes, size))
        persona = opening.persona(random)
        new.append(opening.seconds(persona))
        seen.append(opening.seconds(persona, frames))

    rows = {"one by one" if size == 1 else f"chunks of {size}": seconds for size, seconds in prompts.items()}
    rows |= {"open, new persona": new, "open, known persona": seen, "one frame": frames}
    figures = {
        "forced steps": steps,
        "rounds": ROUNDS,
        "device": runtime.stages.device.name,
        **_chunk_figures(prompts, min(PRIMING_STEPS, steps), steps),
        "steps of the opened prompt": opening.steps,
        f"known persona: time / {config.frame_ms:g} ms": _ratio(seen, [config.frame_ms / 1000]),
        "known persona: time / time of a frame": _ratio(seen, frames),
    }
    timings = {name: Timing.of(seconds) for name, seconds in rows.items()}
    return BenchReport(
        f"priming of {bundle.name}", timings, figures, machine(threads, *ENGINES, "numpy"), "ms in total"
    )


def _checked_steps(config: ModelConfig, steps: int | None) -> int:
    if not config.takes_prompt:
        raise PromptError("This bundle is of a Moshi model, which takes no prompt: nothing is primed.")
    room = config.temporal.capacity - 2  # as in make_prompt
    if steps is not None and steps > room:
        raise PromptError(
            f"A prompt of {steps} steps does not fit in the context of this bundle: use --steps {room} or less."
        )
    return min(STEPS, room) if steps is None else steps


def _random_codes(config: ModelConfig, steps: int, random: np.random.Generator) -> Tokens:
    """Valid tokens of every stream, [steps, 17]."""
    text = random.integers(0, config.text_card, (steps, 1))
    return np.hstack([text, random.integers(0, config.audio_card, (steps, config.num_streams - 1))])


def _prompt_seconds(stages: Stages, codes: Tokens, size: int) -> float:
    """Seconds for forced steps [T, 17] in an empty slot, with `size` steps in a call; empties the slot afterwards."""
    embedding = np.zeros((len(codes), stages.hidden.shape[1]), np.float32)  # [T, dim]
    began = time.perf_counter()
    for start in range(0, len(codes), size):
        chunk = slice(start, start + size)
        stages.run_forced(0, start, codes[chunk], embedding[chunk])
    seconds = time.perf_counter() - began
    stages.reset(0, len(codes))
    return seconds


class _Opening:
    """Opens sessions with the bundle's first voice; a persona's length makes the prompt `steps` steps long."""

    def __init__(self, runtime: Runtime, steps: int):
        self._runtime, self._voice = runtime, next(iter(runtime.bundle.voices), None)
        size = runtime.config.frame_size
        self._speech: Pcm = speech_like(FRAMES, size, seed=0).reshape(-1, size)  # [F, 1920]
        voice = None if self._voice is None else runtime.bundle.voices[self._voice]
        others = make_prompt(runtime.config, voice, ()).steps
        self._length = max(1, steps - others)
        self.steps = others + self._length

    def persona(self, random: np.random.Generator) -> list[int]:
        tokens: list[int] = random.integers(0, self._runtime.config.text_card, self._length).tolist()
        return tokens

    def seconds(self, persona: list[int], frames: list[float] | None = None) -> float:
        """Seconds to open a session. With `frames`, the session then speaks, and the seconds of its frames are added."""
        began = time.perf_counter()
        with self._runtime.open(self._voice, persona, seed=0) as session:
            opened = time.perf_counter() - began
            for frame in self._speech if frames is not None else ():
                began = time.perf_counter()
                session.step(frame)
                if frames is not None:
                    frames.append(time.perf_counter() - began)
        return opened


def _chunk_figures(prompts: dict[int, list[float]], usual: int, steps: int) -> dict[str, object]:
    """Compares the runtime's chunks with single steps and with the fastest size.

    Other sessions wait during a call, so its time is shown, too: the prompt's time divided by the number of calls. A shorter
    last call counts as a fraction.
    """
    fastest = min(prompts, key=lambda size: float(np.median(prompts[size])))
    return {
        "steps in a chunk of the runtime": usual,
        f"one by one: time / time in chunks of {usual}": _ratio(prompts[1], prompts[usual]),
        "steps in the fastest chunk": fastest,
        f"chunks of {usual}: time / time in the fastest chunks": _ratio(prompts[usual], prompts[fastest]),
        **{f"ms of a call of {n}": round(1000 * float(np.median(s)) * n / steps, 2) for n, s in prompts.items()},
    }


def _ratio(seconds: list[float], others: list[float]) -> float:
    return round(float(np.median(seconds) / np.median(others)), 4)
