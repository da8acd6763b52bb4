"""The inbox: frames of the user that wait for a step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pplex.server.inbox import FRAME_S, PACE_S, Frame, Inbox

SIZE = 8  # samples of a frame here


def samples(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)


def started(backlog: int = 4) -> Inbox:
    inbox = Inbox(SIZE, backlog)
    inbox.start()
    return inbox


def pop(inbox: Inbox) -> Frame:
    frame = inbox.pop()
    assert frame is not None
    return frame


def heard(inbox: Inbox, now_s: float) -> list[float]:
    """The first samples of the frames that are due until `now_s`, for an engine that is always free."""
    first = []
    while (due_s := inbox.due_s()) is not None and due_s <= now_s:
        first.append(float(pop(inbox).pcm[0]))
    return first


@given(st.lists(st.integers(0, 3 * SIZE), max_size=20))
def test_frames_do_not_depend_on_how_samples_are_divided(sizes: list[int]) -> None:
    inbox, total = started(backlog=100), 0
    for size in sizes:
        whole = inbox.push(samples(total, size), 0.0)
        assert whole == (total % SIZE + size >= SIZE)
        total += size
    frames = []
    while inbox.due_s() is not None:
        frames.append(pop(inbox).pcm)
    assert len(frames) == total // SIZE
    assert np.array_equal(np.concatenate([*frames, samples(0, 0)]), samples(0, total // SIZE * SIZE))


def test_a_frame_is_due_when_it_is_whole() -> None:
    inbox = started()
    inbox.push(samples(0, SIZE - 1), 1.0)
    assert inbox.due_s() is None
    inbox.push(samples(SIZE - 1, 1), 1.5)
    assert inbox.due_s() == 1.5


def test_a_client_in_time_is_never_held_back() -> None:
    inbox = started()
    for frame in range(1000):
        inbox.push(samples(frame * SIZE, SIZE), frame * FRAME_S)
        assert inbox.due_s() == frame * FRAME_S
        inbox.pop()


def test_latency_is_back_within_a_second_of_a_gap() -> None:
    inbox, heard_s = started(backlog=4), dict[float, float]()

    def hear_until(now_s: float) -> None:
        while (due_s := inbox.due_s()) is not None and due_s <= now_s:
            heard_s[float(pop(inbox).pcm[0]) / SIZE] = due_s

    gap_s = 2.0
    for frame in range(60):
        spoken_s = frame * FRAME_S
        arrives_s = gap_s if FRAME_S < spoken_s < gap_s else spoken_s
        hear_until(arrives_s - 1e-9)
        inbox.push(samples(frame * SIZE, SIZE), arrives_s)
    hear_until(100.0)
    times = [heard_s[frame] for frame in sorted(heard_s)]
    assert min(np.diff(times)) >= PACE_S - 1e-9  # no burst
    assert inbox.dropped == 60 - len(times) > 0
    late = [heard_s[frame] - frame * FRAME_S for frame in heard_s if frame * FRAME_S > gap_s + 1.0]
    assert late and max(late) < 1e-9


def test_the_oldest_late_audio_is_dropped() -> None:
    inbox = started(backlog=2)
    inbox.push(samples(0, 5 * SIZE), 0.0)
    assert inbox.dropped == 3
    assert heard(inbox, 1.0) == [3 * SIZE, 4 * SIZE]


def test_room_is_the_audio_that_would_be_kept() -> None:
    inbox = started(backlog=2)
    assert inbox.room() == 3 * SIZE
    inbox.push(samples(0, 3), 0.0)
    inbox.push(samples(3, inbox.room()), 0.0)
    assert inbox.dropped <= 1


def test_a_due_frame_may_be_cleared_before_pop() -> None:
    inbox = started()
    inbox.push(samples(0, SIZE), 0.0)
    assert inbox.due_s() is not None
    inbox.clear()  # in another thread
    assert inbox.pop() is None


def test_audio_before_the_start_is_kept_and_paced() -> None:
    inbox = Inbox(SIZE, backlog=2)
    inbox.push(samples(0, 20 * SIZE), 0.0)
    assert inbox.due_s() is None
    inbox.start()
    times = []
    while (due_s := inbox.due_s()) is not None:
        times.append(due_s)
        inbox.pop()
    assert len(times) == 20 and inbox.dropped == 0
    assert min(np.diff(times)) >= PACE_S - 1e-9


def test_audio_before_the_start_is_bounded() -> None:
    inbox = Inbox(SIZE, backlog=2)
    for frame in range(1000):
        inbox.push(samples(frame * SIZE, SIZE), 0.0)
    inbox.start()
    assert inbox.dropped == 1000 - 125
    assert float(pop(inbox).pcm[0]) == 875 * SIZE


def test_late_audio_is_dropped_before_audio_from_before_the_start() -> None:
    inbox = Inbox(SIZE, backlog=2)
    inbox.push(samples(0, 5 * SIZE), 0.0)
    inbox.start()
    inbox.push(samples(5 * SIZE, 4 * SIZE), 0.0)
    assert inbox.dropped == 2
    assert heard(inbox, 10.0) == [float(frame * SIZE) for frame in (0, 1, 2, 3, 4, 7, 8)]


def test_a_cleared_inbox_accepts_audio_from_its_next_start() -> None:
    inbox = started()
    inbox.push(samples(0, 2 * SIZE + 3), 0.0)
    epoch = inbox.epoch
    inbox.clear()
    assert inbox.due_s() is None and inbox.epoch == epoch + 1
    assert not inbox.push(samples(50, SIZE), 5.0, epoch)  # of the connection that was lost
    inbox.push(samples(100, SIZE), 5.0, inbox.epoch)
    assert inbox.due_s() is None
    inbox.start()
    frame = pop(inbox)
    assert float(frame.pcm[0]) == 100 and frame.epoch == inbox.epoch


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.5)), max_size=40))
def test_memory_is_bounded_for_any_input(pushes: list[tuple[int, float]]) -> None:
    inbox, now = started(backlog=3), 0.0
    for size, seconds in pushes:
        now += seconds
        inbox.push(samples(0, size), now)
        if (due_s := inbox.due_s()) is not None and due_s <= now:
            inbox.pop()
        assert len(inbox._frames) <= 3


def test_skipped_samples_are_summed_into_frames() -> None:
    inbox = started()
    for _ in range(5):
        inbox.skip(SIZE // 2)
    assert inbox.dropped == 2


# A client that plays each reply when it comes, and would stay late after a burst.


def live_inbox(backlog: int = 4) -> Inbox:
    inbox = Inbox(SIZE, backlog, never_ahead=True)
    inbox.start()
    return inbox


def test_of_what_a_live_client_held_back_the_newest_frames_are_heard() -> None:
    inbox = Inbox(SIZE, 4, never_ahead=True)
    inbox.push(samples(0, 100 * SIZE), 0.0)
    inbox.start()
    assert heard(inbox, 10.0) == [96 * SIZE, 97 * SIZE, 98 * SIZE, 99 * SIZE] and inbox.dropped == 96
    inbox = live_inbox()
    for frame in range(100):
        inbox.push(samples(frame * SIZE, SIZE), 0.0)
    assert heard(inbox, 10.0) == [96 * SIZE, 97 * SIZE, 98 * SIZE, 99 * SIZE]


def test_silence_in_place_of_late_audio_does_not_make_a_client_late_for_good() -> None:
    """Ten times a second of silence is fed while the network stalls, and the second of audio comes after it."""
    inbox, answered, now_s = live_inbox(), 0, 0.0
    for _ in range(10):
        for _ in range(12):  # silence in real time
            inbox.push(samples(0, SIZE), now_s)
            answered += len(heard(inbox, now_s))
            now_s += FRAME_S
        for _ in range(12):  # the audio of the same time
            inbox.push(samples(0, SIZE), now_s)
    answered += len(heard(inbox, now_s + 100))
    assert 120 <= answered <= 120 + 6


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 3 * SIZE)), max_size=60))
def test_replies_are_never_far_ahead_of_the_clients_playback(arrivals: list[tuple[float, int]]) -> None:
    inbox, now_s, played_s = live_inbox(), 0.0, 0.0
    for pause_s, count in arrivals:
        now_s += pause_s
        while (due_s := inbox.due_s()) is not None and due_s <= now_s:
            pop(inbox)
            played_s = max(played_s, due_s) + FRAME_S
            assert played_s - due_s <= 6 * FRAME_S
        inbox.push(samples(0, count), now_s)


def test_a_live_client_whose_clock_is_fast_loses_a_frame_now_and_then() -> None:
    inbox, dropped = live_inbox(), 0
    for frame in range(10_000):
        now_s = frame * FRAME_S * 0.999
        inbox.push(samples(frame * SIZE, SIZE), now_s)
        heard(inbox, now_s)
    dropped = inbox.dropped
    assert 0 < dropped <= 10, "what is too much, and no more"
