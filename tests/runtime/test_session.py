"""Sessions of one runtime: slots, neighbours, batch sizes, opening and closing."""

import shutil
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversations import (
    CODES,
    FRAMES,
    LONG_PERSONA,
    PCM,
    PERSONA,
    WAV,
    Heard,
    assert_same,
    heard,
    is_clear,
    small_runtime,
    state_of,
    talk,
    talk_codes,
)
from ties import assert_same_up_to_a_tie, with_standings

from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import SlotError
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Reply, Runtime, Session


def test_a_session_does_not_depend_on_its_neighbours(eight: Runtime, alone: Heard) -> None:
    """Seven other sessions pause, leave and return; each has its own voice, seed, sampling and start."""
    voices, samplings = ["NATM1", "VARF2", None], [GREEDY, Sampling(), Sampling(2.0, 512, 3.0, 512), Sampling(0.1, 2)]
    others: dict[int, Session] = {}  # by speaker
    replies, sizes = [], set()

    def join(speaker: int, seed: int) -> None:
        others[speaker] = eight.open(
            voices[speaker % 3], "other " * speaker, seed=seed, sampling=samplings[speaker % len(samplings)]
        )

    with ExitStack() as stack:
        join(1, seed=1)
        join(2, seed=2)
        session = stack.enter_context(eight.open("NATF0", PERSONA, seed=7))
        stack.callback(lambda: [other.close() for other in others.values()])
        assert session.row == 2
        for frame in range(FRAMES):
            if frame % 9 == 3 and len(others) < 7 and frame < 60:
                join(len(others) + 1, seed=frame)
            if frame in (150, 200):  # one session leaves below the tested slot, one above
                others.pop({150: 1, 200: 5}[frame]).close()
            if frame in (170, 230):
                join({170: 1, 230: 5}[frame], seed=7)
            speaking = {s: PCM[i, frame] for i, s in others.items() if (frame + i) % 5 or frame % 10 == 0}
            if frame % 20 == 7:  # the others step while the tested session waits
                eight.step(speaking)
            frames = {**speaking, session: PCM[0, frame]} if frame % 2 else {session: PCM[0, frame], **speaking}
            answers = eight.step(frames)
            assert answers.keys() == frames.keys()
            replies.append(answers[session])
            sizes.add(len(frames))
    assert sizes == {3, 4, 5, 6, 7, 8}
    assert heard(replies) == alone


@pytest.mark.parametrize("schedule", range(3))
def test_sessions_are_independent_in_any_schedule(
    uncached: Runtime, ways: list[tuple[dict[str, Any], Heard]], monkeypatch: pytest.MonkeyPatch, schedule: int
) -> None:
    """Sessions open (in chunks), step and close at random; each gives the replies it gives alone."""
    monkeypatch.setattr("pplex.runtime.priming.PRIMING_STEPS", 10)
    random = np.random.default_rng(schedule)
    openings: list[tuple[int, Generator[None, None, Session]]] = []
    said: dict[Session, tuple[int, list[Reply]]] = {}
    compared = 0
    with ExitStack() as stack:
        for _ in range(150):
            if len(openings) + len(said) < uncached.slots:
                way = int(random.integers(len(ways)))
                openings.append((way, uncached.begin(**ways[way][0])))
                next(openings[-1][1])
            for way, opening in [some for some in openings if random.random() < 0.5]:
                try:
                    next(opening)
                except StopIteration as end:
                    said[stack.enter_context(end.value)] = way, []
                    openings = [other for other in openings if other[1] is not opening]
            speaking = [session for session in said if random.random() < 0.8]
            random.shuffle(speaking)  # type: ignore[arg-type]
            frames = {session: PCM[said[session][0], len(said[session][1])] for session in speaking}
            for session, reply in uncached.step(frames).items():
                said[session][1].append(reply)
            for session, (way, replies) in list(said.items()):
                alone = ways[way][1]
                if len(replies) == len(alone.tokens) or random.random() < 0.01:
                    session.close()
                    del said[session]
                    compared += len(replies)
                    assert not replies or heard(replies) == alone.start(len(replies)), ways[way][0]
        for _, opening in openings:
            opening.close()
    assert compared > 150


@pytest.fixture(scope="module")
def ways(uncached: Runtime) -> list[tuple[dict[str, Any], Heard]]:
    """Ways to open a session, and its first 50 replies alone."""
    asked: list[dict[str, Any]] = [
        {"voice": "NATF0", "persona": LONG_PERSONA, "seed": 1},
        {"voice": None, "persona": PERSONA, "seed": 2, "sampling": GREEDY},
        {"voice": WAV, "persona": LONG_PERSONA, "seed": 1},
        {"voice": "VARF2", "persona": "", "seed": 4, "sampling": Sampling(2.0, 512, 2.0, 512)},
    ]
    found = []
    for i, options in enumerate(asked):
        with uncached.open(**options) as session:
            found.append((options, talk(session, PCM[i, :50])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "sampled"])
def test_batch_size_changes_no_token_but_for_near_ties(tiny_bundle: Bundle, eight: Runtime, sampling: Sampling) -> None:
    growing, logits = Runtime(tiny_bundle, slots=8, threads=1), small_runtime(tiny_bundle, logits=True)
    assert growing.batches == [1, 2, 4, 8]
    with logits.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
        alone = with_standings(session, CODES[0])
    with eight.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
        assert_same_up_to_a_tie(tiny_bundle, talk_codes(session, CODES[0]), alone)

    # The same conversation in every slot: a higher slot begins later and ends earlier.
    conversations: list[tuple[Session, list[Tokens]]] = []
    said_by = dict[int, list[Tokens]]()
    for frame in range(FRAMES):
        if frame % 30 == 0 and frame < 240:
            conversations.append((growing.open("NATF0", PERSONA, seed=7, sampling=sampling), []))
        if frame > 240 and frame % 7 == 0 and len(conversations) > 1:
            conversations.pop()[0].close()
        answers = growing.step_codes({session: CODES[0, len(said)] for session, said in conversations})
        for session, said in conversations:
            said.append(answers[session])
            said_by[session.row] = said
    assert sorted(said_by) == [*range(8)]
    for said in said_by.values():
        assert_same_up_to_a_tie(tiny_bundle, np.stack(said), alone)
    assert len(conversations) == 1 and len(conversations[0][1]) == FRAMES


def test_a_used_slot_equals_a_new_one(tiny_bundle: Bundle) -> None:
    def fresh() -> Runtime:
        return small_runtime(tiny_bundle)

    used = fresh()
    with used.open(WAV, "Someone else entirely", seed=1) as other:
        talk(other, PCM[1, :150])
    with used.open("NATF0", PERSONA, seed=7) as session, fresh().open("NATF0", PERSONA, seed=7) as expected:
        assert talk(session, PCM[0, :60]) == talk(expected, PCM[0, :60])
        assert_same(state_of(used, 0), state_of(expected.runtime, 0))


def test_closing_clears_everything_the_session_wrote(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle)
    for voice in ("NATF0", None, WAV):
        for frames in (0, 1, 20):  # with 20 every ring is full
            with runtime.open(voice, LONG_PERSONA, seed=7) as session:
                for frame in PCM[0, :frames]:
                    session.step(frame)
            assert is_clear(runtime), (voice, frames)


def test_sessions_take_the_lowest_free_slot(eight: Runtime) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(eight.open(seed=0)) for _ in range(4)]
        assert [session.row for session in sessions] == [0, 1, 2, 3]
        sessions[2].close()
        sessions[0].close()
        assert [stack.enter_context(eight.open(seed=0)).row for _ in range(3)] == [0, 2, 4]


@pytest.mark.slow
def test_opening_others_between_the_frames_changes_nothing(uncached: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions are primed in turns while a third one speaks between their chunks."""
    monkeypatch.setattr("pplex.runtime.priming.PRIMING_STEPS", 4)
    asked: list[dict[str, Any]] = [
        {"voice": "NATF0", "persona": LONG_PERSONA, "seed": 1},
        {"voice": WAV, "persona": "You like to listen.", "seed": 2},
        {"voice": "NATM1", "persona": [5] * 40, "seed": 3, "sampling": GREEDY},
    ]
    third = uncached.open(**asked[0])
    replies = [third.step(frame) for frame in PCM[0, :15]]  # past the end of the ring
    openings = {1: uncached.begin(**asked[1]), 2: uncached.begin(**asked[2])}
    sessions: dict[int, Session] = {}
    while openings:
        for i, opening in list(openings.items()):
            try:
                next(opening)
            except StopIteration as end:
                sessions[i] = end.value
                del openings[i]
            replies.append(third.step(PCM[0, len(replies)]))
    spoken = len(replies)
    assert spoken > 70
    together: dict[int, list[Reply]] = {1: [], 2: []}
    for frame in range(20):
        answers = uncached.step({sessions[1]: PCM[1, frame], third: PCM[0, spoken + frame], sessions[2]: PCM[2, frame]})
        replies.append(answers[third])
        for i, session in sessions.items():
            together[i].append(answers[session])
    for session in (third, *sessions.values()):
        session.close()

    for i, got in {0: replies, **together}.items():
        with uncached.open(**asked[i]) as session:
            assert session.row == 0
            assert heard(got) == talk(session, PCM[i, : len(got)]), asked[i]


def test_opening_without_a_free_slot_is_refused(one: Runtime, eight: Runtime) -> None:
    with one.open(seed=0), pytest.raises(SlotError, match=r"All 1 slots are taken\. Close a session"):
        one.open(seed=0)
    with ExitStack() as stack:
        sessions = [stack.enter_context(eight.open(seed=0)) for _ in range(8)]
        with pytest.raises(SlotError, match=r"All 8 slots are taken"):
            eight.open(seed=0)
        sessions[5].close()
        assert stack.enter_context(eight.open(seed=0)).row == 5


def test_a_closed_session_cannot_be_stepped_and_closes_again(one: Runtime) -> None:
    session = one.open(seed=0)
    session.close()
    session.close()
    with one.open("NATF0", PERSONA, seed=7) as successor:
        session.close()
        for step in (lambda: session.step(PCM[0, 0]), lambda: session.step_codes(CODES[0, 0])):
            with pytest.raises(SlotError, match="closed"):
                step()
        got = talk(successor, PCM[0, :5])
    with one.open("NATF0", PERSONA, seed=7) as undisturbed:
        assert talk(undisturbed, PCM[0, :5]) == got


def test_a_session_of_another_runtime_is_refused(one: Runtime, eight: Runtime) -> None:
    with one.open(seed=0) as ours, eight.open(seed=0) as theirs:
        before = state_of(one, 0), state_of(eight, 0)
        for frames in ({theirs: PCM[0, 0]}, {ours: PCM[0, 0], theirs: PCM[0, 0]}):
            with pytest.raises(SlotError, match="another runtime"):
                one.step(frames)
        with pytest.raises(SlotError, match="another runtime"):
            one.step_codes({theirs: CODES[0, 0]})
        assert_same(state_of(one, 0), before[0])
        assert_same(state_of(eight, 0), before[1])


def test_a_session_of_another_runtime_is_not_closed(tiny_bundle: Bundle) -> None:
    runtimes = [small_runtime(tiny_bundle) for _ in range(2)]
    ours, theirs = (runtime.open(seed=0) for runtime in runtimes)
    before = [state_of(runtime, 0) for runtime in runtimes]
    with pytest.raises(SlotError, match="another runtime"):
        runtimes[0].close(theirs)
    assert ours.is_open and theirs.is_open
    for runtime, state in zip(runtimes, before, strict=True):
        assert_same(state_of(runtime, 0), state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slots": 0}, "0 slots in batches of any size: a runtime needs at least 1"),
        ({"slots": -3}, "-3 slots"),
        ({"slots": 8, "batches": [1, 4]}, "8 slots need a batch size of at least 8; the largest given is 4"),
    ],
)
def test_slots_and_batches_that_do_not_fit_are_refused(
    tiny_bundle: Bundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SlotError, match=message):
        Runtime(tiny_bundle, **options)


def test_the_processor_may_be_used_from_any_thread(one: Runtime, alone: Heard) -> None:
    """One thread after the other; a GPU may be bound to a thread: see test_ort_cuda.py."""
    with ThreadPoolExecutor(1) as pool, pool.submit(one.open, "NATF0", PERSONA, seed=7).result() as session:
        assert pool.submit(talk, session, PCM[0, :3]).result() == alone.start(3)


def test_load_opens_a_folder_with_options(tiny_bundle: Bundle) -> None:
    runtime = Runtime.load(str(tiny_bundle.folder), slots=3, threads=1)
    assert (runtime.slots, runtime.batches) == (3, [1, 2, 3])
    with runtime.open("NATF0", PERSONA, seed=7) as session:
        assert session.step(PCM[0, 0]).pcm.shape == (1920,)


def test_a_loaded_runtime_does_not_need_the_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    runtime = Runtime.load(folder, slots=1, threads=1)
    shutil.rmtree(folder)
    with runtime.open("NATM1", PERSONA, seed=1) as session:
        assert talk(session, PCM[0, :2]).tokens.shape == (2, 17)
