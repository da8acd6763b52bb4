"""Many recordings over all slots of a runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conversations import PERSONA
from recorded import write_speech

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import frames, read_audio
from pplex.runtime.batch import Answer, Answers, OfflineSettings, Recording, load, recorded
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import AudioError, PromptError
from pplex.runtime.session import Runtime

SLOTS = 3
SETTINGS = OfflineSettings("NATF0", PERSONA, 7, slots=SLOTS)
LENGTHS = (3000, 30_000, 9000, 1920, 17_001, 24_000, 1)  # samples


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Bundle) -> Runtime:
    return load(tiny_bundle.folder, SETTINGS, threads=1, device="cpu")


def sounds() -> list[Recording]:
    def sound(samples: int) -> Callable[[], Pcm]:
        return lambda: np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)

    return [Recording(str(samples), sound(samples), samples, SETTINGS) for samples in LENGTHS]


def alone(runtime: Runtime, recording: Recording) -> Answer:
    """The answer in an otherwise empty runtime, frame by frame."""
    pcm = recording.read()
    with runtime.open("NATF0", PERSONA, 7) as session:
        replies = [session.step(frame) for frame in frames(pcm, 1920)]
    pieces = [runtime.tokenizer.piece(int(reply.tokens[0])) for reply in replies]
    return Answer(np.concatenate([reply.pcm for reply in replies])[: len(pcm)], pieces)


def test_every_answer_is_that_of_a_conversation_alone(runtime: Runtime) -> None:
    answers = Answers(runtime, sounds())
    found = dict(answers)
    assert sorted(len(answer.pcm) for answer in found.values() if isinstance(answer, Answer)) == sorted(LENGTHS)
    for recording, answer in found.items():
        expected = alone(runtime, recording)
        assert isinstance(answer, Answer) and answer.pieces == expected.pieces
        assert (answer.pcm == expected.pcm).all()
    assert answers.seconds["frames"] > answers.seconds["temporal"] > 0 and answers.seconds["prime"] > 0


def test_the_longest_recordings_begin_and_every_slot_stays_busy(runtime: Runtime) -> None:
    busy = list[int]()
    ended = [recording.samples for recording, _ in Answers(runtime, sounds(), busy.append)]
    counts = [-(-samples // 1920) for samples in LENGTHS]
    assert sum(busy) == sum(counts) and len(busy) == max(counts) == 16
    assert busy[0] == SLOTS and ended[0] == 17_001 and set(ended[-2:]) == {30_000, 1}


def test_a_recording_that_cannot_be_read_is_an_error_of_its_own(runtime: Runtime, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "good.wav", 0.3)
    gone = recorded(write_speech(tmp_path / "gone.wav", 0.5), SETTINGS)
    (tmp_path / "gone.wav").unlink()  # after it was measured
    found = {Path(one.name).name: answer for one, answer in Answers(runtime, [gone, recorded(path, SETTINGS)])}
    assert isinstance(found["gone.wav"], AudioError) and "does not exist" in str(found["gone.wav"])
    assert isinstance(found["good.wav"], Answer) and len(found["good.wav"].pcm) == len(read_audio(path))


def test_a_memory_window_does_not_depend_on_the_other_recordings(roomy_bundle: Bundle) -> None:
    settings = OfflineSettings("NATF0", PERSONA, 7, memory_window=120, slots=SLOTS)
    runtime = load(roomy_bundle.folder, settings, threads=1, device="cpu")
    sound = np.random.default_rng(0).normal(0, 0.1, (4, 150 * 1920)).astype(np.float32)
    recordings = [Recording(str(i), lambda i=i: sound[i], sound.shape[1], settings) for i in range(4)]  # type: ignore[misc]
    together = dict(Answers(runtime, recordings))
    assert runtime.memory.rebuilt > len(recordings)
    for recording in recordings[:2]:
        ((_, alone),) = Answers(runtime, [recording])
        answer = together[recording]
        assert isinstance(answer, Answer) and isinstance(alone, Answer)
        assert answer.pieces == alone.pieces and (answer.pcm == alone.pcm).all()


def test_slots_are_free_after_an_interruption_and_after_an_error(runtime: Runtime) -> None:
    for _ in range(2 * SLOTS):
        answers = iter(Answers(runtime, sounds()))
        next(answers)
        answers.close()  # type: ignore[attr-defined]
    wrong = Recording("wrong", sounds()[0].read, 1, OfflineSettings("NATF9", PERSONA, 7))
    with pytest.raises(PromptError):
        list(Answers(runtime, [*sounds(), wrong]))
    for session in [runtime.open(seed=1) for _ in range(SLOTS)]:
        session.close()
