"""The token ring against its rules, applied to one session and one column at a time, without a ring."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.runtime.config import RELEASED
from pplex.runtime.delays import FREE, DelayRing

SLOTS = 3
DELAYS = [(0, 0, 0), (0, 1), (1, 0, 1, 0), (2, 0, 1), (0, 2, 2, 1, 0), RELEASED.delays]


class Columns:
    """The rules for one session: every column is kept, and a token is known by its stream and its column."""

    def __init__(self, delays: Sequence[int], initial: Sequence[int]):
        self.delays, self.initial, self.step = delays, initial, 1
        self.tokens = {(stream, 0): token for stream, token in enumerate(initial)}
        self.provided: set[tuple[int, int]] = set()
        self.has_heard = False

    def provide(self, stream: int, token: int, frames_ago: int = 0) -> None:
        place = stream, self.step - frames_ago + self.delays[stream]
        self.tokens[place] = token
        self.provided.add(place)

    def begin(self) -> tuple[list[int], list[int]]:
        streams = range(len(self.delays))
        for stream in streams:
            if self.delays[stream] >= self.step:
                self.tokens[stream, self.step] = self.initial[stream]
                self.provided.add((stream, self.step))
        model_input = [self.tokens[stream, self.step - 1] for stream in streams]
        forced = [
            self.tokens[stream, self.step] if (stream, self.step) in self.provided else FREE for stream in streams
        ]
        return model_input, forced

    def commit(self, tokens: Sequence[int]) -> list[int] | None:
        """The frame that this step completes, if any."""
        places = {(stream, self.step): token for stream, token in enumerate(tokens)}
        self.tokens |= {place: token for place, token in places.items() if place not in self.provided}
        self.step += 1
        late = max(1, *self.delays)
        if self.step - 1 <= late:
            return None
        return [self.tokens[stream, self.step - 1 - late + delay] for stream, delay in enumerate(self.delays)]


def initial_tokens(delays: Sequence[int]) -> tuple[int, ...]:
    return tuple(-1000 - stream for stream in range(len(delays)))


def new_ring(delays: Sequence[int], slots: int = SLOTS) -> DelayRing:
    return DelayRing(slots, tuple(delays), initial_tokens(delays))


def whole_step(ring: DelayRing, rows: Sequence[int], frame: Sequence[int]) -> np.ndarray:
    """A step with `frame` provided for every stream of every given row."""
    index = np.array(rows)
    ring.provide(index, np.array([frame] * len(index)))
    _, forced = ring.begin(index)
    return ring.commit(index, forced)


@settings(deadline=None)
@given(st.data())
def test_rows_follow_the_rules_for_any_tokens(data: st.DataObject) -> None:
    """Rows step in any order and combination; some are reset or copied over others in between.

    As in a prompt, every token of a step is provided; later, as in a conversation, the last streams are heard.
    """
    delays = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=6), "delays")
    sampled = data.draw(st.integers(1, len(delays)), "streams that can be sampled, the first ones")
    ring, expected = new_ring(delays), [Columns(delays, initial_tokens(delays)) for _ in range(SLOTS)]
    fresh = iter(range(10**9))  # all tokens differ, so that none equals another by chance

    for _ in range(data.draw(st.integers(1, 15), "steps")):
        action = data.draw(st.sampled_from(["step"] * 6 + ["reset", "copy"]), "action")
        if action == "reset":
            row = data.draw(st.integers(0, SLOTS - 1))
            ring.reset(row)
            expected[row] = Columns(delays, initial_tokens(delays))
            continue
        if action == "copy":
            source, target = data.draw(st.permutations(range(SLOTS)))[:2]
            ring.restore(target, ring.save(source))
            expected[target] = Columns(delays, initial_tokens(delays))
            expected[target].tokens = dict(expected[source].tokens)
            expected[target].provided = set(expected[source].provided)
            expected[target].step = expected[source].step
            expected[target].has_heard = expected[source].has_heard
            continue
        rows = data.draw(st.permutations(range(SLOTS)))[: data.draw(st.integers(1, SLOTS))]
        whole = data.draw(st.booleans(), "every token is provided")
        rows = [row for row in rows if (not expected[row].has_heard if whole else expected[row].step > 1)]
        index = np.array(rows, np.intp)
        first = 0 if whole else sampled
        tokens = np.array([[next(fresh) for _ in delays[first:]] for _ in rows], np.int64).reshape(
            len(rows), len(delays) - first
        )
        ring.provide(index, tokens) if whole else ring.hear(index, first, tokens)
        for i, row in enumerate(rows):
            expected[row].has_heard = not whole
            for stream in range(first, len(delays)):
                expected[row].provide(stream, int(tokens[i, stream - first]), frames_ago=0 if whole else 1)
        model_input, forced = ring.begin(index)
        for i, row in enumerate(rows):
            assert (model_input[i].tolist(), forced[i].tolist()) == expected[row].begin()

        committed = data.draw(st.sampled_from([sampled, len(delays)]), "streams stored")
        drawn = np.array([[next(fresh) for _ in range(committed)] for _ in rows], np.int64).reshape(
            len(rows), committed
        )
        drawn = np.where(forced[:, :committed] == FREE, drawn, forced[:, :committed])
        has_output = ring.step[index] > ring.late
        output = ring.commit(index, drawn)
        for i, row in enumerate(rows):
            frame = expected[row].commit(drawn[i].tolist())
            assert has_output[i] == (frame is not None)
            assert frame is None or output[i].tolist() == frame


@pytest.mark.parametrize("delays", DELAYS)
def test_first_frame_waits_for_the_longest_delay(delays: tuple[int, ...]) -> None:
    """A complete frame comes out complete, after the longest delay."""
    ring = new_ring(delays, slots=1)
    frames = [[100 * step + stream for stream in range(len(delays))] for step in range(20)]
    ready, outputs = [], []
    for frame in frames:
        ready.append(bool(ring.step[0] > ring.late))
        outputs.append(whole_step(ring, [0], frame)[0].tolist())
    wait = max(1, *delays)
    assert ready == [False] * wait + [True] * (len(frames) - wait)
    assert outputs[wait:] == frames[: len(frames) - wait]


def test_columns_are_as_many_as_a_recorded_voice_holds() -> None:
    assert new_ring(RELEASED.delays).tokens.shape == (SLOTS, 17, 4)


@pytest.mark.parametrize("delays", DELAYS)
def test_model_reads_a_stream_one_step_after_its_delay(delays: tuple[int, ...]) -> None:
    ring, row = new_ring(delays, slots=1), np.array([0])
    heard = []
    for step in range(12):
        ring.provide(row, np.full((1, len(delays)), step))
        model_input, forced = ring.begin(row)
        ring.commit(row, forced)
        heard.append(model_input[0])
    for stream, delay in enumerate(delays):
        expected = [initial_tokens(delays)[stream]] * (1 + delay) + list(range(12))
        assert [int(frame[stream]) for frame in heard] == expected[:12]


def test_a_sampled_token_is_read_in_the_next_step_and_a_heard_one_at_once() -> None:
    ring, rows = new_ring((0, 1, 0)), np.array([2, 0])
    for step in range(1, 10):
        if step > 1:
            ring.hear(rows, 2, np.array([[70 + step], [80 + step]]))
        model_input, forced = ring.begin(rows)
        assert (forced[:, 0] == FREE).all()
        assert (forced[:, 1] == (initial_tokens((0, 1, 0))[1] if step == 1 else FREE)).all()
        if step > 2:
            own = [[10 * (step - 1), -step + 1], [10 * (step - 1) + 1, -step + 1]]
            assert model_input.tolist() == [[*own[0], 70 + step], [*own[1], 80 + step]]
        sampled = np.array([[10 * step, -step], [10 * step + 1, -step]])
        ring.commit(rows, np.where(forced[:, :2] == FREE, sampled, forced[:, :2]))


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 17])
def test_reset_equals_new(delays: tuple[int, ...], steps: int) -> None:
    ring, new = new_ring(delays), new_ring(delays)
    for step in range(steps):
        whole_step(ring, range(SLOTS), [step] * len(delays))
    others = [ring.save(0), ring.save(2)]
    ring.reset(1)
    for got, expected in zip(ring.save(1), new.save(1), strict=True):
        np.testing.assert_array_equal(got, expected)
    for row, before in zip((0, 2), others, strict=True):
        for got, expected in zip(ring.save(row), before, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("delays", DELAYS)
def test_saved_state_is_a_copy_and_equals_the_live_one(delays: tuple[int, ...]) -> None:
    ring, other = new_ring(delays), new_ring(delays)
    for step in range(6):
        whole_step(ring, [0], [step] * len(delays))
    saved = ring.save(0)
    live = [whole_step(ring, [0], [50 + step] * len(delays)).tolist() for step in range(6)]
    for target, row in ((ring, 0), (ring, 2), (other, 1)):
        target.restore(row, saved)
        assert [whole_step(target, [row], [50 + step] * len(delays)).tolist() for step in range(6)] == live
    other.restore(0, saved)
    other.restore(1, saved)
    whole_step(other, [0], [99] * len(delays))  # steps of one row do not change the other row
    assert [whole_step(other, [1], [50 + step] * len(delays)).tolist() for step in range(6)] == live


def walked(steps: int, seed: int = 0) -> tuple[DelayRing, list[np.ndarray]]:
    """A ring of two slots after some steps of slot 1 with random tokens, and the frames that they completed."""
    ring, chance, row = new_ring(RELEASED.delays, slots=2), np.random.default_rng(seed), np.array([1])
    frames = []
    for _ in range(steps):
        ring.hear(row, 9, chance.integers(0, 100, (1, 8)))
        frames.append(ring.commit(row, chance.integers(0, 100, (1, 9)))[0])
    return ring, frames


def test_decided_tokens_are_forced_and_free_ones_sampled() -> None:
    ring, _ = walked(5)
    decided = np.array([[7, -1, 5, -1, -1, -1, -1, -1, -1]])
    ring.decide(np.array([1]), 0, decided)
    now = ring.begin(np.array([1]))[1][0]
    assert now[0] == 7 and (now[1:9] == -1).all()  # stream 2 is delayed
    ring.commit(np.array([1]), np.full((1, 9), 50))
    assert ring.begin(np.array([1]))[1][0, :9].tolist() == [-1, -1, 5, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("step", [2, 5, 40, 41, 42, 43])
def test_a_renumbered_slot_goes_on_with_the_same_tokens(step: int) -> None:
    (ring, _), (plain, _) = walked(30), walked(30)
    ring.renumber(1, step)
    chance, row = np.random.default_rng(9), np.array([1])
    for _ in range(10):
        heard, drawn = chance.integers(0, 100, (1, 8)), chance.integers(0, 100, (1, 9))
        for each in (ring, plain):
            each.hear(row, 9, heard)
        assert np.array_equal(ring.begin(row)[0], plain.begin(row)[0])
        assert np.array_equal(ring.commit(row, drawn), plain.commit(row, drawn))
    assert ring.step[1] == step + 10


@pytest.mark.parametrize("delays", DELAYS, ids=str)
@pytest.mark.parametrize("back", [2, 5, 20])
def test_a_slot_that_goes_back_goes_on_like_one_that_stopped(delays: Sequence[int], back: int) -> None:
    row, steps = np.array([1]), 30

    def walk(ring: DelayRing, steps: int, seed: int) -> list[np.ndarray]:
        """Steps in which every token is drawn: their inputs and completed frames."""
        chance, seen = np.random.default_rng(seed), []
        for _ in range(steps):
            seen.append(ring.begin(row)[0])
            seen.append(ring.commit(row, chance.integers(0, 100, (1, len(delays)))))
        return seen

    ring, stopped = new_ring(delays, slots=2), new_ring(delays, slots=2)
    frames = np.concatenate(walk(ring, steps, seed=0)[1::2])
    walk(stopped, steps - back, seed=0)
    length, end = ring.columns + ring.late, steps - back + ring.late
    ring.go_back(1, back, frames[end - length : end])
    assert all(np.array_equal(*both) for both in zip(walk(ring, 10, 9), walk(stopped, 10, 9), strict=True))
