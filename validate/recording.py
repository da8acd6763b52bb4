"""Plays scenarios to an agent, and records sound, tokens and the time of each frame: called by `validate.validation`."""

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import soundfile

from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.audio import frames
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Reply, Runtime, Session
from pplex.validate.parting import TokenTrace
from pplex.validate.speech.scenarios import Scenario
from pplex.validate.standings import Standings, standings

FRAME, HOST = "frame", "host"
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SamplingRun:
    """A seed and settings for sampling."""

    name: str
    seed: int
    sampling: Sampling


def make_runs(seeds: Iterable[int]) -> tuple[SamplingRun, ...]:
    """A run at the default settings for each seed, and a greedy run."""
    return (*(SamplingRun(f"seed {seed}", seed, Sampling()) for seed in seeds), SamplingRun("greedy", 0, GREEDY))


@dataclass(frozen=True)
class ScenarioRecording:
    """An agent's recording in a scenario: pcm [F * 1920] float32 at 24 kHz, tokens [F, 17] (text, agent, user).

    `standings` [1 + F, 1 + 8, ...] of the draws before and in each frame's step, if the runtime has logits.
    """

    scenario: Scenario
    run: str
    pcm: Pcm
    tokens: Tokens
    standings: Standings | None = None

    @property
    def name(self) -> str:
        return f"{self.scenario.name}, {self.run}"

    @property
    def trace(self) -> TokenTrace:
        return TokenTrace(self.name, self.tokens, self.standings, self.scenario.pcm)

    def to_wav(self) -> bytes:
        """A WAV file with the user on the left and the agent on the right."""
        user = np.pad(self.scenario.pcm, (0, len(self.pcm) - len(self.scenario.pcm)))
        both = np.clip(np.nan_to_num(np.stack([user, self.pcm], axis=1)), -1, 1)  # [samples, 2]
        file = io.BytesIO()
        soundfile.write(file, both, SAMPLE_RATE_HZ, "PCM_16", format="WAV")
        return file.getvalue()


@dataclass(frozen=True)
class Recorded:
    """All recordings of an agent, and the seconds [steps] of each step by stage, "host" and "frame".

    A step is one frame of up to `sessions` conversations.
    """

    recordings: tuple[ScenarioRecording, ...]
    seconds: Mapping[str, Seconds]
    sessions: int


def record(
    runtime: Runtime, scenarios: Iterable[Scenario], runs: Sequence[SamplingRun], voice: str | None, persona: str
) -> Recorded:
    """Play every scenario to the runtime's agent once for each run, in all slots at once.

    The agent's sound is aligned with the user's sound; a real listener hears it a frame later. Raises PromptError.
    """
    work = iter([(scenario, run) for scenario in scenarios for run in runs])
    recordings, steps = list[ScenarioRecording](), list[dict[str, float]]()
    while batch := list(islice(work, runtime.slots)):
        recordings += _converse(runtime, batch, voice, persona, steps)
    names = steps[0] if steps else {}
    seconds = {name: np.array([step[name] for step in steps]) for name in names}
    return Recorded(tuple(recordings), seconds, runtime.slots)


def _converse(
    runtime: Runtime,
    batch: Sequence[tuple[Scenario, SamplingRun]],
    voice: str | None,
    persona: str,
    steps: list[dict[str, float]],
) -> list[ScenarioRecording]:
    """Conversations side by side, each until its scenario ends; adds the seconds of every step to `steps`."""
    user = [frames(scenario.pcm, runtime.config.frame_size) for scenario, _ in batch]  # [F, 1920] each
    replies: list[list[Reply]] = [[] for _ in batch]
    drawn: list[list[Standings]] = [[] for _ in batch]
    with ExitStack() as opened:
        sessions = [opened.enter_context(runtime.open(voice, persona, run.seed, run.sampling)) for _, run in batch]
        for session, draws in zip(sessions, drawn, strict=True):
            draws += [standings(session)] if runtime.logits else []
        for frame in range(max(map(len, user))):
            speaking = [i for i, pcm in enumerate(user) if frame < len(pcm)]
            answers = _timed_step(runtime, {sessions[i]: user[i][frame] for i in speaking}, steps)
            for i in speaking:
                replies[i].append(answers[sessions[i]])
                if runtime.logits:
                    drawn[i].append(standings(sessions[i]))
    return [_recording(*played, heard, draws) for played, heard, draws in zip(batch, replies, drawn, strict=True)]


def _timed_step(runtime: Runtime, pcm: Mapping[Session, Pcm], steps: list[dict[str, float]]) -> dict[Session, Reply]:
    before, began = dict(runtime.stages.seconds), time.perf_counter()
    replies = runtime.step(pcm)
    whole = time.perf_counter() - began
    stages = {name: seconds - before[name] for name, seconds in runtime.stages.seconds.items()}
    steps.append({**stages, HOST: whole - sum(stages.values()), FRAME: whole})
    return replies


def _recording(
    scenario: Scenario, run: SamplingRun, replies: Sequence[Reply], drawn: Sequence[Standings]
) -> ScenarioRecording:
    pcm, tokens = np.concatenate([reply.pcm for reply in replies]), np.stack([reply.tokens for reply in replies])
    return ScenarioRecording(scenario, run.name, pcm, tokens, Standings.stack(drawn) if drawn else None)
