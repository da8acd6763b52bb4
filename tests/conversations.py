"""Conversations with the tiny bundle: the user's side, what the agent answers, and comparisons of both."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from folders import TINY

from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.delays import DelayRing
from pplex.runtime.device import host_view
from pplex.runtime.errors import PplexError
from pplex.runtime.session import Reply, Runtime, Session

FRAMES = 300  # three times the tiny model's ring of 96, twelve times that of its codec
CAPACITY = 96
ROOM = CAPACITY - 2  # steps a prompt may take
PERSONA = "Hello there friend"
LONG_PERSONA = np.random.default_rng(3).integers(4, 400, 45).tolist()  # the ring is full a few frames later
WAV = str(TINY / "checkpoint/voices/synthetic.wav")
RECORDING = pytest.param(WAV, id="recording")

PCM = np.random.default_rng(1).normal(0, 0.1, (9, FRAMES, 1920)).astype(np.float32)  # [speaker, F, 1920]
CODES = np.random.default_rng(2).integers(0, 2048, (9, FRAMES, 8))  # [speaker, F, 8]


@dataclass(frozen=True)
class Heard:
    """A conversation's replies: tokens [F, 17], pcm [F, 1920], the text pieces."""

    tokens: Tokens
    pcm: Pcm
    text: list[str]

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        assert isinstance(other, Heard)
        same = np.array_equal(self.tokens, other.tokens) and np.array_equal(self.pcm, other.pcm)
        return same and self.text == other.text

    def start(self, frames: int) -> "Heard":
        return Heard(self.tokens[:frames], self.pcm[:frames], self.text[:frames])


def heard(replies: Iterable[Reply]) -> Heard:
    replies = list(replies)
    return Heard(
        np.stack([reply.tokens for reply in replies]),
        np.stack([reply.pcm for reply in replies]),
        [reply.text for reply in replies],
    )


def talk(session: Session, pcm: Pcm) -> Heard:
    return heard([session.step(frame) for frame in pcm])


def talk_codes(session: Session, codes: Tokens) -> Tokens:
    return np.stack([session.step_codes(frame) for frame in codes])


def ring_of(session: Session) -> dict[str, Array]:
    """The temporal transformer's ring entries of a session."""
    return session.runtime.stages.engines["temporal"].save(session.row, CAPACITY)


def state_of(runtime: Runtime, row: int) -> dict[str, Array]:
    """The state of all graphs for a slot, and its token ring."""
    state: dict[str, Any] = {}
    for graph, engine in runtime.stages.engines.items():
        state |= {f"{graph}.{name}": host_view(buffer)[row].copy() for name, buffer in engine.state.items()}
    tokens, provided, step = runtime.ring.save(row)
    return state | {"tokens": tokens, "provided": provided, "step": np.array(step)}


def is_clear(runtime: Runtime) -> bool:
    """Whether slot 0 is clear and has a new token ring."""
    new = DelayRing(1, runtime.config.delays, runtime.config.initial_tokens).save(0)
    expected = dict(zip(("tokens", "provided", "step"), new, strict=True))
    return all(np.array_equal(buffer, expected.get(name, 0 * buffer)) for name, buffer in state_of(runtime, 0).items())


def assert_same(got: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Bit for bit."""
    assert got.keys() == expected.keys()
    for name, array in got.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def finish(opening: Generator[None, None, Session]) -> tuple[Session, int]:
    """The opened session, and the number of chunks that priming took."""
    chunks = 0
    while True:
        try:
            next(opening)
        except StopIteration as end:
            return end.value, chunks
        chunks += 1


def small_runtime(bundle: Bundle, slots: int = 1, **options: Any) -> Runtime:
    """Every call runs all slots, on one thread: the tiny graphs are too small for more."""
    return Runtime(bundle, slots, threads=1, batches=[slots], **options)


@contextmanager
def refused(runtime: Runtime, error: type[PplexError], message: str) -> Iterator[None]:
    """The block must fail with this error, and leave the runtime's only slot free and clear."""
    with pytest.raises(error, match=message):
        yield
    assert is_clear(runtime)
    with runtime.open("NATF0", PERSONA, seed=7) as session:
        assert session.row == 0
