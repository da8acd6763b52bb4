"""The transcriber's queue and its process, without a server: a real model, and utterances of noise, which have no words."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from voice import MODEL, needs_speech, said

from pplex.server import whisper
from pplex.server.metrics import Metrics
from pplex.server.transcriber import WAITING, WAITING_OF_ONE, Transcriber
from pplex.server.user_utterances import Utterance
from pplex.server.whisper import Segment, TranscriberError

PATIENCE_S = 30
NOISE = tuple((np.random.default_rng(0).standard_normal((5, 1920)) * 0.05).astype(np.float32))

pytestmark = needs_speech


class Speaker:
    """Keeps the turns of all speakers, in order."""

    def __init__(self, name: str, turns: list[tuple[str, int]]):
        self.name, self.turns = name, turns
        self.texts: list[str] = []

    def heard(self, utterance: Utterance, segments: list[Segment]) -> None:
        self.turns.append((self.name, utterance.first))
        self.texts += [segment.text for segment in segments]


class Running:
    """A transcriber with its metrics."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.transcriber = Transcriber(str(MODEL), self.metrics)
        self.turns: list[tuple[str, int]] = []

    def speaker(self, name: str) -> Speaker:
        return Speaker(name, self.turns)

    def put(self, speaker: Speaker, *firsts: int) -> None:
        for first in firsts:
            self.transcriber.put(speaker, Utterance(NOISE, first))

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("pplex_utterances_total", {"result": result}) or 0.0

    @property
    def pid(self) -> int:
        assert self.transcriber._whisper is not None
        return self.transcriber._whisper.pid

    def wait_for(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, self.turns
            time.sleep(0.01)


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    running.transcriber.start()
    running.transcriber.wait_until_loaded()
    yield running
    running.transcriber.stop()


def stopped(running: Running) -> Speaker:
    """Stop the process while it has an utterance of the speaker that is returned."""
    os.kill(running.pid, signal.SIGSTOP)
    busy = running.speaker("busy")
    running.put(busy, 0)
    running.wait_for(lambda: not running.transcriber._waiting)
    return busy


def test_speakers_take_turns_and_the_oldest_utterances_are_dropped(running: Running) -> None:
    stopped(running)
    many, few = running.speaker("many"), running.speaker("few")
    running.put(many, *range(10))
    running.put(few, 0, 1)
    assert running.count("dropped") == 10 - WAITING_OF_ONE
    os.kill(running.pid, signal.SIGCONT)
    running.wait_for(lambda: len(running.turns) == 6)
    assert running.turns == [("busy", 0), ("many", 7), ("few", 0), ("many", 8), ("few", 1), ("many", 9)]
    assert running.count("empty") == 6


def test_all_speakers_together_have_a_limit(running: Running) -> None:
    stopped(running)
    speakers = [running.speaker(str(number)) for number in range(WAITING + 5)]
    for speaker in speakers:
        running.put(speaker, 0)
    assert running.count("dropped") == 5
    assert list(running.transcriber._waiting) == speakers[:WAITING]


def test_what_waits_of_a_conversation_that_is_over_is_forgotten(running: Running) -> None:
    stopped(running)
    gone, other = running.speaker("gone"), running.speaker("other")
    running.put(gone, 0, 1)
    running.put(other, 0)
    running.transcriber.forget(gone)
    os.kill(running.pid, signal.SIGCONT)
    running.wait_for(lambda: len(running.turns) == 2)
    assert running.turns == [("busy", 0), ("other", 0)]


@pytest.mark.parametrize("frames", [1, 187], ids=["has it", "does not take it"])
def test_a_process_without_an_answer_is_ended_and_another_is_started(
    running: Running, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """15 s of audio do not fit into what the system keeps for a process that has stopped."""
    first = running.pid
    running.put(running.speaker("before"), 0)
    running.wait_for(lambda: running.turns)  # the code is loaded
    monkeypatch.setattr(whisper, "ANSWER_S", 0.3)
    os.kill(running.pid, signal.SIGSTOP)
    running.transcriber.put(running.speaker("busy"), Utterance((np.zeros(1920, np.float32),) * frames, 0))
    running.wait_for(lambda: running.count("failed"))
    monkeypatch.setattr(whisper, "ANSWER_S", PATIENCE_S)
    speaker = running.speaker("after")
    running.transcriber.put(speaker, Utterance(tuple(said("I would like a large pizza with mushrooms.")), 0))
    running.wait_for(lambda: speaker.texts)
    assert "would like" in speaker.texts[0] and running.pid != first


def test_a_process_that_does_not_load_is_ended_and_another_is_started(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper, "RELOAD_S", 0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.put(running.speaker("lost"), 0)
    running.wait_for(lambda: running.metrics.registry.get_sample_value("pplex_transcriber_restarts_total") == 2)
    monkeypatch.setattr(whisper, "RELOAD_S", PATIENCE_S)
    speaker = running.speaker("after")
    running.transcriber.put(speaker, Utterance(tuple(said("I would like a large pizza with mushrooms.")), 0))
    running.wait_for(lambda: speaker.texts)
    assert "would like" in speaker.texts[0]


def test_the_end_does_not_wait_for_work() -> None:
    running = Running()
    running.transcriber.start()
    running.wait_for(lambda: running.transcriber._whisper)
    began = time.monotonic()
    running.transcriber.stop()  # while the model is loaded
    running.transcriber.wait_until_loaded()
    assert time.monotonic() - began < 5 and not running.transcriber.is_running


def test_a_model_that_cannot_be_loaded_at_the_start_is_an_error() -> None:
    transcriber = Transcriber("nonsense", Metrics())
    transcriber.start()
    with pytest.raises(TranscriberError, match="--transcribe nonsense: the model cannot be loaded"):
        transcriber.wait_until_loaded()
    transcriber.stop()
