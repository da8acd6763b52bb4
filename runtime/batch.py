"""Many recordings, answered over all slots of a runtime: one call of each graph for a frame of all busy slots.

Called by `runtime.offline` and `fdb.batch`. The longest recordings come first, so that the slots end at about the same time:

    slot 0   [ 9 s            ][ 5 s    ]
    slot 1   [ 8 s          ][ 6 s      ]
    slot 2   [ 7 s        ][ 6 s      ]
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import frames, read_audio
from pplex.runtime.backend import Backend
from pplex.runtime.errors import AudioError
from pplex.runtime.sampling import Sampling
from pplex.runtime.session import Reply, Runtime, Session


@dataclass(frozen=True)
class OfflineSettings:
    """The agent and its sampling: the arguments of `Runtime.open`, and of `Runtime` the memory window and the slots."""

    voice: str | None = None
    persona: str = ""
    seed: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    greeting: str | None = None
    memory_window: int | None = None
    slots: int = 1


@dataclass(frozen=True)
class Recording:
    """What a user says: `read` returns it, [samples] at 24 kHz. samples: its length. settings: of the agent who answers.

    has_own_prompt: if the agent's prompt does not fit the model, only this recording has no answer.
    """

    name: str
    read: Callable[[], Pcm]
    samples: int
    settings: OfflineSettings
    has_own_prompt: bool = False


@dataclass(frozen=True)
class Answer:
    """What the agent says: pcm [samples] at 24 kHz, as long as the recording, and a piece of text for each frame."""

    pcm: Pcm
    pieces: list[str]


def recorded(path: str | os.PathLike[str], settings: OfflineSettings) -> Recording:
    """The recording in a file. It is read twice: here for its length, and when it is played. Raises AudioError."""
    read = partial(read_audio, path)
    return Recording(os.fspath(path), read, len(read()), settings)


def load(
    bundle: Path, settings: OfflineSettings, threads: int | None = None, device: str | Backend | None = None
) -> Runtime:
    """A runtime with one batch size: the answer to a recording is the same to the bit, whatever other slots do.

    Raises AccessError, BundleError, EngineError, SteeringError.
    """
    options = {"threads": threads, "device": device, "memory_window": settings.memory_window}
    return Runtime.load(bundle, slots=settings.slots, batches=[settings.slots], **options)


class Answers:
    """Plays recordings to agents in all slots of a runtime. Iterate once: each recording comes with its answer.

    A recording that cannot be read comes with its AudioError. seconds: of priming, of frames, and of frames' stages so far.
    """

    def __init__(
        self, runtime: Runtime, recordings: Iterable[Recording], advance: Callable[[int], Any] = lambda frames: None
    ):
        """advance: gets the number of frames answered, after each step."""
        self._runtime, self._advance = runtime, advance
        self._waiting = deque(sorted(recordings, key=lambda one: -one.samples))
        self._busy: dict[Session, _Talk] = {}
        self.seconds = {"prime": 0.0, "frames": 0.0}

    def __iter__(self) -> Iterator[tuple[Recording, Answer | AudioError]]:
        try:
            while self._waiting or self._busy:
                yield from self._fill()
                yield from self._step()
        finally:
            for session in self._busy:
                session.close()

    def _fill(self) -> Iterator[tuple[Recording, AudioError]]:
        """Begin conversations in the free slots."""
        while self._waiting and len(self._busy) < self._runtime.slots:
            recording = self._waiting.popleft()
            try:
                pcm = recording.read()
            except AudioError as error:
                yield recording, error
                continue
            began = time.perf_counter()
            session = _open(self._runtime, recording.settings)
            self._busy[session] = _Talk(recording, pcm, frames(pcm, self._runtime.config.frame_size))
            self.seconds["prime"] += time.perf_counter() - began

    def _step(self) -> Iterator[tuple[Recording, Answer]]:
        """Answer a frame of every conversation, and end those that are complete."""
        began, before = time.perf_counter(), dict(self._runtime.stages.seconds)
        replies = self._runtime.step({session: talk.frame for session, talk in self._busy.items()})
        while self._runtime.work():  # at once: the other conversations must not decide when it is done
            pass
        for session, reply in replies.items():
            self._busy[session].hear(reply, self._runtime.tokenizer.piece(int(reply.tokens[0])))
        self.seconds["frames"] += time.perf_counter() - began
        for stage, seconds in self._runtime.stages.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds - before[stage]
        self._advance(len(replies))
        for session in [session for session, talk in self._busy.items() if talk.is_complete]:
            session.close()
            talk = self._busy.pop(session)
            yield talk.recording, talk.answer()


class _Talk:
    """A conversation that goes on: the user's frames [F, 1920], and the replies so far."""

    def __init__(self, recording: Recording, pcm: Pcm, user: Pcm):
        self.recording, self._samples, self._user = recording, len(pcm), user
        self._heard: list[Pcm] = []
        self._pieces: list[str] = []

    @property
    def frame(self) -> Pcm:
        """The user's next frame."""
        heard: Pcm = self._user[len(self._heard)]
        return heard

    @property
    def is_complete(self) -> bool:
        return len(self._heard) == len(self._user)

    def hear(self, reply: Reply, piece: str) -> None:
        self._heard.append(reply.pcm)
        self._pieces.append(piece)

    def answer(self) -> Answer:
        return Answer(np.concatenate(self._heard)[: self._samples], self._pieces)


def _open(runtime: Runtime, settings: OfflineSettings) -> Session:
    return runtime.open(settings.voice, settings.persona, settings.seed, settings.sampling, greeting=settings.greeting)
