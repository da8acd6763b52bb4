"""Offline runs, like the reference's offline script: a recording in, the agent's recording and text out.

Called by `cli.talk`, `cli.voices` and by programs.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import check_audio_target, encode_audio, frames, read_audio
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.files import check_distinct, check_writable, write_files
from pplex.runtime.sampling import Sampling
from pplex.runtime.session import Runtime, Session

FrameBar = Callable[[int], AbstractContextManager[Callable[[], Any]]]


@dataclass(frozen=True)
class OfflineSettings:
    """The agent and its sampling: the arguments of `Runtime.open`, and the memory window of `Runtime`."""

    voice: str | None = None
    persona: str = ""
    seed: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    greeting: str | None = None
    memory_window: int | None = None


@dataclass(frozen=True)
class OfflineReport:
    """Seconds of each stage of one run, and the length of the audio."""

    audio_s: float
    seconds: dict[str, float]

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio, without loading and priming."""
        return self.seconds["frames"] / self.audio_s

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "real_time_factor": self.real_time_factor}

    def to_text(self) -> str:
        stages = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return f"{stages}\n{self.audio_s:.2f} s of audio, real-time factor {self.real_time_factor:.3f}"


def run_offline(
    bundle: Path,
    input_wav: str,
    output_wav: str,
    output_text: str,
    settings: OfflineSettings,
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = lambda total: nullcontext(lambda: None),
) -> OfflineReport:
    """Play a recording to the agent; write its speech, as long as the input, and a JSON list of its text pieces.

    Padding tokens are named PAD, EPAD, BOS and EOS. "-" is standard input or output. Both outputs are written at the end.
    `threads` and `device` as in `Runtime`. Raises AccessError, AudioError, BundleError, EngineError, OutputError,
    PromptError.
    """
    check_audio_target(output_wav)
    check_writable(output_text)
    check_distinct(input_wav, output_wav, output_text)
    pcm = read_audio(input_wav)
    began = time.perf_counter()
    runtime = Runtime.load(bundle, slots=1, threads=threads, device=device, memory_window=settings.memory_window)
    loaded = time.perf_counter()
    session = _open(runtime, settings)
    primed = time.perf_counter()
    before = dict(runtime.stages.seconds)
    heard, pieces = _converse(runtime, session, frames(pcm, runtime.config.frame_size), bar)
    stages = {name: seconds - before[name] for name, seconds in runtime.stages.seconds.items()}
    seconds = {"load": loaded - began, "prime": primed - loaded, "frames": time.perf_counter() - primed, **stages}
    text = json.dumps(pieces, ensure_ascii=False) + "\n"
    write_files({output_wav: encode_audio(output_wav, heard[: len(pcm)]), output_text: text.encode()})
    return OfflineReport(len(pcm) / SAMPLE_RATE_HZ, seconds)


def speak(
    bundle: Path,
    settings: OfflineSettings,
    seconds: float,
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = lambda total: nullcontext(lambda: None),
) -> Pcm:
    """What the agent says to a silent user, [F * 1920]: at least `seconds`. Arguments and errors as in `run_offline`."""
    runtime = Runtime.load(bundle, slots=1, threads=threads, device=device)
    session = _open(runtime, settings)
    silence = np.zeros(math.ceil(seconds * SAMPLE_RATE_HZ), np.float32)
    return _converse(runtime, session, frames(silence, runtime.config.frame_size), bar)[0]


def _open(runtime: Runtime, settings: OfflineSettings) -> Session:
    return runtime.open(settings.voice, settings.persona, settings.seed, settings.sampling, greeting=settings.greeting)


def _converse(runtime: Runtime, session: Session, user: Pcm, bar: FrameBar) -> tuple[Pcm, list[str]]:
    """The agent's pcm [F * 1920] and text pieces [F] for the user's frames [F, 1920]."""
    heard, pieces = [], []
    with bar(len(user)) as advance:
        for frame in user:
            reply = session.step(frame)
            runtime.work()
            heard.append(reply.pcm)
            pieces.append(runtime.tokenizer.piece(int(reply.tokens[0])))
            advance()
    return np.concatenate(heard), pieces
