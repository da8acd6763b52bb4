"""Rebuilt and rewound sessions: what they remember, what they say next, and what their neighbours notice."""

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conversations import CODES, PCM, PERSONA, WAV, assert_same, heard, small_runtime, state_of, talk, talk_codes
from ties import assert_same_up_to_a_tie, with_standings

from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import SILENCE_CODES
from pplex.runtime.errors import PromptError, SlotError, SteeringError
from pplex.runtime.session import Runtime, Session

OTHER = "You are a wise and friendly teacher"
WINDOW = 400


@pytest.fixture(scope="module")
def roomy(roomy_bundle: Bundle) -> Runtime:
    """Three slots and a spare one."""
    return small_runtime(roomy_bundle, 3, logits=True, spare=True)


@pytest.fixture(scope="module")
def windowed(roomy_bundle: Bundle) -> Runtime:
    return small_runtime(roomy_bundle, 3, memory_window=WINDOW)


@pytest.fixture
def session(roomy: Runtime) -> Iterator[Session]:
    with roomy.open("NATF0", PERSONA, seed=7) as session:
        yield session


def drive(work: Iterator[None]) -> int:
    return sum(1 for _ in work)


def entries(session: Session) -> dict[str, np.ndarray]:
    runtime = session.runtime
    return runtime.stages.save(session.row, int(runtime.ring.step[session.row]) - 1)


def forced_again(runtime: Runtime, voice: str, persona: str, history: Tokens, seed: int) -> Session:
    """A fresh session that is forced, step by step, to say and hear the history [F, 17] and the text after it."""
    opening = runtime.begin(voice, persona, seed, forced=history[0, :9])
    try:
        while True:
            next(opening)
    except StopIteration as end:
        session: Session = end.value
    for frame, after in pairwise(history):
        runtime.step_codes({session: frame[9:]}, forced={session: after[:9]})
    return session


@pytest.mark.parametrize("frames", [1, 40, 200])
def test_a_rebuilt_session_says_what_a_fresh_one_with_the_same_history_says(
    roomy: Runtime, roomy_bundle: Bundle, frames: int
) -> None:
    """Fresh: another slot, primed with the new prompt and forced frame by frame. Then both are free."""
    with roomy.open("NATM1", PERSONA, seed=7) as session:
        history = talk_codes(session, CODES[0, :frames])
        session.rebuild(OTHER, voice="NATF0", keep_seconds=frames * 0.08)
        said = talk_codes(session, CODES[0, frames : frames + 120])
        with forced_again(roomy, "NATF0", OTHER, history, seed=7) as fresh:
            # The text and the first code of the next frame were drawn before the rebuild.
            drawn = np.concatenate([said[0, :2], np.full(7, -1)])
            roomy.step_codes({fresh: history[-1, 9:]}, forced={fresh: drawn})
            expected = with_standings(fresh, CODES[0, frames : frames + 120])
            for name, array in entries(fresh).items():
                np.testing.assert_allclose(entries(session)[name], array, atol=1e-4)
    assert_same_up_to_a_tie(roomy_bundle, said, expected)


def test_the_same_history_is_rebuilt_bit_for_bit_in_any_slot_beside_any_neighbours(roomy: Runtime) -> None:
    said = []
    for neighbours in (0, 2):
        others = [roomy.open("VARF2", "other", seed) for seed in range(neighbours)]
        with roomy.open("NATM1", PERSONA, seed=7) as session:
            talk(session, PCM[0, :150])
            work = session.rebuilding(OTHER, voice="NATF0")
            while next(work, "over") != "over":
                if others:
                    roomy.step(dict(zip(others, PCM[1:, 0], strict=False)))
            said.append((talk(session, PCM[0, 150:250]), session.row))
        for other in others:
            other.close()
    assert said[0][0] == said[1][0] and said[0][1] != said[1][1]


def test_a_session_talks_on_while_it_is_rebuilt(roomy: Runtime) -> None:
    """The sound has no gap, and what was said meanwhile is remembered, too."""
    with roomy.open("NATM1", PERSONA, seed=7) as plain:
        expected = talk(plain, PCM[0, :210])
    with roomy.open("NATM1", PERSONA, seed=7) as session:
        before = [session.step(frame) for frame in PCM[0, :200]]
        work, chunks = session.rebuilding(keep_seconds=20), 0
        while next(work, "over") != "over":
            before.append(session.step(PCM[0, 200 + chunks]))
            chunks += 1
        assert 3 <= chunks <= 5
        assert heard(before) == expected.start(200 + chunks)
        log, steps = roomy.memory.log, int(roomy.ring.step[session.row]) - 1
        assert log.count[session.row] == 200 + chunks
        with forced_again(roomy, "NATM1", PERSONA, log.frames(session.row, 0, 200 + chunks), 7) as fresh:
            for name, array in entries(fresh).items():
                np.testing.assert_allclose(entries(session)[name][:, : array.shape[1]], array, atol=1e-4)
            assert steps == roomy.ring.step[fresh.row]


def test_facts_stand_behind_the_persona_and_stay(roomy: Runtime, session: Session) -> None:
    talk(session, PCM[0, :30])
    session.rebuild(facts="It is night")
    with roomy.open("NATF0", f"{PERSONA} It is night", seed=1) as expected:
        prompt = entries(expected)
        length = next(iter(prompt.values())).shape[1] - 1
        assert_same(
            {name: array[:, :length] for name, array in entries(session).items()},
            {name: array[:, :length] for name, array in prompt.items()},
        )
    talk(session, PCM[0, 30:40])
    session.rebuild(voice="NATM1")
    agent = roomy.memory._agents[session.row]
    assert (agent.voice, agent.persona, agent.facts) == ("NATM1", PERSONA, "It is night")


def test_only_the_newest_seconds_are_kept(roomy: Runtime, session: Session) -> None:
    talk(session, PCM[0, :200])
    prompt = roomy.ring.step[session.row] - 201 - 1
    session.rebuild(keep_seconds=4)
    assert roomy.ring.step[session.row] - 1 - prompt == 50 + 1
    session.rebuild(keep_seconds=0)
    assert roomy.ring.step[session.row] - 1 - prompt == 1
    talk(session, PCM[0, :10])


def test_the_history_begins_after_silence_if_there_is_any(roomy: Runtime, session: Session) -> None:
    prompt = int(roomy.ring.step[session.row]) - 2
    talk(session, PCM[0, :100])
    quiet = roomy.memory.log._quiet
    quiet[session.row] = False
    quiet[session.row, 58:64] = True  # a history of 50 frames would begin in frame 50
    session.rebuild(keep_seconds=4)
    assert roomy.ring.step[session.row] - 2 - prompt == 100 - 58


def test_a_recorded_voice_is_rebuilt_without_its_file(roomy_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copy(WAV, tmp_path / "voice.wav")
    runtime = small_runtime(roomy_bundle, 1, prefix_bytes=0, spare=True)
    with runtime.open(tmp_path / "voice.wav", PERSONA, seed=1) as session:
        talk(session, PCM[0, :20])
        (tmp_path / "voice.wav").unlink()
        session.rebuild(facts="It is night")
        talk(session, PCM[0, 20:30])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"voice": "nobody"}, PromptError, "Unknown voice"),
        ({"persona": "w " * 600}, PromptError, "Shorten the persona"),
        ({"keep_seconds": 100}, SteeringError, "cannot be kept"),
        ({"keep_seconds": -1}, SteeringError, "cannot be kept"),
        ({"keep_seconds": float("nan")}, SteeringError, "cannot be kept"),
        ({"keep_seconds": float("inf")}, SteeringError, "cannot be kept"),
    ],
)
def test_a_refused_rebuild_changes_nothing(
    roomy: Runtime, session: Session, change: dict[str, object], error: type[Exception], message: str
) -> None:
    talk(session, PCM[0, :30])
    before = state_of(roomy, session.row)
    with pytest.raises(error, match=message):
        session.rebuild(**change)  # type: ignore[arg-type]
    assert_same(state_of(roomy, session.row), before)
    session.rebuild()


def test_a_rebuild_without_a_free_slot_is_refused(roomy_bundle: Bundle) -> None:
    runtime = small_runtime(roomy_bundle)
    with runtime.open("NATF0", PERSONA) as session:
        talk(session, PCM[0, :5])
        with pytest.raises(SteeringError, match="needs a free slot"):
            session.rebuild()


def test_a_rebuild_takes_a_free_slot_for_its_time(roomy_bundle: Bundle) -> None:
    runtime = small_runtime(roomy_bundle, 2)
    with runtime.open("NATF0", PERSONA, seed=1) as session:
        talk(session, PCM[0, :150])
        work = session.rebuilding()
        next(work)
        with pytest.raises(SlotError, match="taken"):
            runtime.open(None)
        with pytest.raises(SteeringError, match="being rebuilt"):
            session.rebuild()
        with pytest.raises(SteeringError, match="being rebuilt"):
            session.rewind(1)
        work.close()
        with runtime.open(None, seed=2) as other:
            assert not any(array[:, 20:].any() for array in runtime.stages.save(other.row, 90).values())


def test_closing_a_session_ends_its_rebuild(roomy: Runtime) -> None:
    session = roomy.open("NATF0", PERSONA, seed=1)
    talk(session, PCM[0, :150])
    work = session.rebuilding()
    next(work)
    session.close()
    with roomy.open("NATM1", OTHER, seed=2) as new:
        assert new.row == session.row
        before = entries(new)
        with pytest.raises(SlotError, match="closed while"):
            drive(work)
        assert_same(entries(new), before)
        new.rebuild()


def test_an_engine_that_cannot_catch_up_is_refused(roomy: Runtime, session: Session) -> None:
    """Here the conversation adds as many frames as a chunk replays."""
    talk(session, PCM[0, :150])
    work = session.rebuilding()
    with pytest.raises(SteeringError, match="too slow"):
        for _ in work:
            talk(session, PCM[0, 150:230])


# The window.


def test_a_long_call_keeps_its_persona_and_its_length(windowed: Runtime) -> None:
    with windowed.open("NATF0", PERSONA, seed=7) as session, windowed.open("NATM1", OTHER, seed=8) as other:
        first, steps = windowed.memory.rebuilt, []
        for frame in range(900):
            windowed.step({session: PCM[0, frame % 300], other: PCM[1, frame % 300]})
            windowed.work()
            steps.append(windowed.ring.step[:2].max() - 1)
        assert max(steps) < WINDOW and windowed.memory.rebuilt - first >= 6
        for each, voice, persona in ((session, "NATF0", PERSONA), (other, "NATM1", OTHER)):
            with windowed.open(voice, persona, seed=1) as fresh:
                prompt = {name: array[:, :-1] for name, array in entries(fresh).items()}
                length = next(iter(prompt.values())).shape[1]
                assert_same({name: array[:, :length] for name, array in entries(each).items()}, prompt)


def test_a_loop_that_never_works_is_rebuilt_at_the_windows_end(windowed: Runtime) -> None:
    with windowed.open("NATF0", PERSONA, seed=7) as session:
        first, steps = windowed.memory.rebuilt, []
        for frame in range(500):
            session.step_codes(CODES[0, frame % 300])
            steps.append(int(windowed.ring.step[session.row]) - 1)
        assert max(steps) <= WINDOW and windowed.memory.rebuilt > first


def test_a_window_changes_nothing_before_its_end(roomy: Runtime, windowed: Runtime) -> None:
    said = []
    for runtime in (roomy, windowed):
        with runtime.open("NATF0", PERSONA, seed=7) as session:
            said.append(talk(session, PCM[0, :100]))
    assert said[0] == said[1]


def test_windows_that_do_not_fit_are_refused(roomy_bundle: Bundle) -> None:
    for window in (10, 511, 100_000):
        with pytest.raises(SteeringError, match="64 to 510"):
            small_runtime(roomy_bundle, memory_window=window)
    narrow = small_runtime(roomy_bundle, memory_window=100)
    with pytest.raises(PromptError, match="memory window"):
        narrow.open("NATF0", "w " * 40)
    narrow.open(None, "", seed=1).close()


# Back.


def test_a_rewound_session_goes_on_from_the_earlier_frame(roomy: Runtime, roomy_bundle: Bundle) -> None:
    """Its entries and token ring are those of a session that stopped there; only codec and noise go on."""
    with roomy.open("NATF0", PERSONA, seed=7) as session, roomy.open("NATF0", PERSONA, seed=7) as early:
        early_frames = talk_codes(early, CODES[0, :60])
        session_frames = talk_codes(session, CODES[0, :80])
        assert session.rewind(1.6) == 20
        assert np.array_equal(session_frames[:60], early_frames)
        assert_same(entries(session), entries(early))
        step = int(roomy.ring.step[early.row])
        assert roomy.ring.step[session.row] == step
        column = (step - 1) % roomy.ring.columns
        drawn = roomy.ring.tokens[:, :9, column]
        assert np.array_equal(drawn[session.row], drawn[early.row])
        assert np.array_equal(roomy.memory.log.frames(session.row, 0, 60), early_frames)
        talk_codes(session, CODES[1, :30])


def test_a_greedy_session_repeats_itself_after_a_rewind(roomy: Runtime, roomy_bundle: Bundle) -> None:
    from pplex.runtime.sampling import GREEDY

    with roomy.open("NATF0", PERSONA, seed=7, sampling=GREEDY) as session:
        expected = with_standings(session, CODES[0, :120])
        session.rewind(50 * 0.08)
        again = talk_codes(session, CODES[0, 70:120])
    assert_same_up_to_a_tie(roomy_bundle, np.concatenate([expected.tokens[:70], again]), expected)


@pytest.mark.parametrize("frames, back", [(300, 30), (300, 200)])
def test_a_rewind_past_overwritten_entries_computes_them_again(tiny_bundle: Bundle, frames: int, back: int) -> None:
    runtime = small_runtime(tiny_bundle, 1, spare=True)
    with runtime.open(None, "", seed=7) as session:
        talk(session, PCM[0, :frames])
        most = runtime.memory.log.length - 1
        if back > most:
            with pytest.raises(SteeringError, match=f"0.08 to {most * 0.08:g} s"):
                session.rewind(back * 0.08)
        else:
            assert session.rewind(back * 0.08) == back
            assert runtime.ring.step[session.row] < runtime.config.temporal.capacity
        talk(session, PCM[0, :20])


def test_a_rewind_that_fails_changes_nothing(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle)
    with runtime.open(None, "", seed=7) as session:
        talk(session, PCM[0, :200])
        before, count = state_of(runtime, 0), int(runtime.memory.log.count[0])
        with pytest.raises(SteeringError, match="free slot"):
            session.rewind(2)
        assert_same(state_of(runtime, 0), before)
        assert runtime.memory.log.count[0] == count
        for seconds in (0, -1, 0.03, 1e9, float("nan"), float("inf")):
            with pytest.raises(SteeringError, match="can go back"):
                session.rewind(seconds)


def test_a_rewind_stops_what_is_being_said(roomy: Runtime, session: Session) -> None:
    talk(session, PCM[0, :20])
    saying = session.say("good night my friend")
    talk(session, PCM[0, 20:25])
    session.rewind(1)
    assert saying.state == "cut"


def test_a_rebuild_never_takes_a_slot_of_a_runtime_with_a_spare_one(roomy: Runtime, session: Session) -> None:
    talk(session, PCM[0, :150])
    with roomy.open(None, "", seed=1) as other:
        talk(other, PCM[0, :150])
        first, second = session.rebuilding(), other.rebuilding()
        next(first)
        next(second)  # waits
        with (
            roomy.open(None, "", seed=2) as third,
            pytest.raises(SteeringError, match="Another session is being rebuilt"),
        ):
            third.rebuild()
        drive(first)
        drive(second)


def test_a_prompt_that_the_window_has_no_room_for_is_found_before_it_is_primed(roomy_bundle: Bundle) -> None:
    runtime = small_runtime(roomy_bundle, memory_window=120)
    with pytest.raises(PromptError, match="memory window's 120 steps"):
        runtime.check_prompt("NATF0", "w " * 40)
    runtime.check_prompt(None, "")


def test_a_window_that_cannot_rebuild_a_session_lets_it_go_on(
    roomy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = small_runtime(roomy_bundle, 2, memory_window=200, prefix_bytes=0)
    with runtime.open("NATF0", PERSONA, seed=1) as session, runtime.open("NATM1", PERSONA, seed=2) as other:
        with monkeypatch.context() as patch:
            patch.delitem(runtime.bundle.voices, "NATF0")  # type: ignore[arg-type]
            for frame in CODES[0]:
                runtime.step_codes({session: frame, other: frame})
                runtime.work()
        assert runtime.ring.step[session.row] > 300 and runtime.ring.step[other.row] <= 200


def test_a_rewound_hold_stays_silent(roomy: Runtime, session: Session) -> None:
    talk(session, PCM[0, :20])
    session.hold()
    talk(session, PCM[0, 20:40])
    session.rewind(0.8)
    held = talk(session, PCM[0, 40:50]).tokens
    assert (held[:, 0] == roomy.config.text_padding).all() and (held[:, 1:9] == SILENCE_CODES).all()


def test_what_was_taken_back_is_not_remembered_again(tiny_bundle: Bundle) -> None:
    """A second rewind and a rebuild use only frames that stayed, not those that overwrote them in the log."""
    runtime = small_runtime(tiny_bundle, 1, spare=True)
    with runtime.open(None, "", seed=7) as session:
        frames = talk_codes(session, CODES[0, :300])
        assert session.rewind(80 * 0.08) == 80
        log = runtime.memory.log
        assert np.array_equal(log.frames(0, log.first(0), 220), frames[log.first(0) : 220])
        with pytest.raises(SteeringError, match="can go back"):
            session.rewind((220 - log.first(0)) * 0.08)
        talk_codes(session, CODES[1, :40])
        session.rebuild()


def test_the_silence_before_a_history_is_not_one_that_was_taken_back(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle, 1, spare=True)
    with runtime.open(None, "", seed=7) as session:
        talk_codes(session, CODES[0, :300])
        log = runtime.memory.log
        session.rewind(90 * 0.08)
        assert log.count[0] - log.first(0) == 6
        log._quiet[0, (np.arange(210, 300)) % log.length] = True
        log._quiet[0, np.arange(log.first(0), 210) % log.length] = False
        session.rebuild()
        assert runtime.ring.step[0] == runtime.memory._prompt_steps[0] + 6 + 2


def test_a_new_session_has_nothing_to_take_back(session: Session) -> None:
    with pytest.raises(SteeringError, match="no older frames"):
        session.rewind(0.08)


@pytest.mark.parametrize("order", [lambda each: each.rebuild(), lambda each: each.rewind(5)], ids=["rebuild", "rewind"])
def test_work_in_one_go_does_not_wait_for_a_rebuild_that_nobody_runs(
    tiny_bundle: Bundle, order: Callable[[Session], object]
) -> None:
    runtime = small_runtime(tiny_bundle, 2, spare=True)
    with runtime.open(None, "", seed=7) as session, runtime.open(None, "", seed=8) as other:
        for frame in range(220):
            runtime.step({session: PCM[0, frame], other: PCM[1, frame]})
        work = other.rebuilding(voice="NATF0")
        next(work)
        with pytest.raises(SteeringError, match="Another session is being rebuilt"):
            order(session)
        drive(work)


def test_a_rewind_in_chunks_forgets_what_is_said_meanwhile(roomy: Runtime) -> None:
    """Sessions step between its chunks, and the memory is that of a rewind in one go."""
    runtime = roomy
    with runtime.open("NATF0", PERSONA, seed=7) as session, runtime.open("NATM1", "other", seed=8) as neighbour:
        talk(session, PCM[0, :300])
        session.rebuild(keep_seconds=1)  # older entries are gone
        with runtime.open(snapshot=session.snapshot()) as fork:
            assert fork.rewind(30 * 0.08) == 30
            work, chunks = session.rewinding(30 * 0.08), 0
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    assert end.value == 30 + chunks
                    break
                runtime.step({session: PCM[2, chunks], neighbour: PCM[1, chunks]})
                chunks += 1
            assert chunks >= 2
            assert_same(entries(session), entries(fork))
            row, other = session.row, fork.row
            ring, step = runtime.ring, int(runtime.ring.step[session.row])
            assert step == ring.step[other] and runtime.memory.log.count[row] == runtime.memory.log.count[other] == 270
            for back in (0, 1):  # the columns that are read again
                column = (step - 1 - back) % ring.columns
                assert np.array_equal(ring.tokens[row, :, column], ring.tokens[other, :, column])


def test_an_order_to_rebuild_takes_the_place_of_the_windows(windowed: Runtime) -> None:
    """`work` goes on with the others, and the window asks again if the order is given up."""
    with windowed.open(None, "", seed=1) as session, windowed.open(None, "", seed=2) as other:
        both = {session: PCM[0, 0], other: PCM[1, 0]}
        while len(windowed.memory._waiting) < 2:
            windowed.step(both)
        windowed.work()  # the first session's has begun, the second one's has not
        work = other.rebuilding()
        next(work)
        while windowed.work():
            pass
        drive(work)
        assert not windowed.memory._busy.any() and not windowed.memory._waiting
        assert windowed.ring.step[other.row] < WINDOW


def test_a_rebuild_in_one_go_finishes_that_of_the_window(windowed: Runtime) -> None:
    """No slot is free, and the window's rebuild of another session has the spare one."""
    opened = [windowed.open(None, "", seed=seed) for seed in range(3)]
    frames = dict(zip(opened, PCM[:3, 0], strict=True))
    while len(windowed.memory._waiting) < 3:
        windowed.step(frames)
    windowed.work()
    opened[windowed.memory._waiting[-1][0]].rebuild()
    assert not windowed.memory._busy.any()
    for _ in range(5):
        windowed.step(frames)
        windowed.work()
    for session in opened:
        session.close()
