"""Cutting a user's audio into utterances."""

import numpy as np

from pplex.server.user_utterances import BEFORE, LONGEST, QUIET, SOUGHT, Utterance, UtteranceCutter, milliseconds


def noise(frames: int, level: float, seed: int = 0) -> np.ndarray:
    """Frames of noise with a root mean square of `level`."""
    return (np.random.default_rng(seed).standard_normal((frames, 1920)) * level).astype(np.float32)


def cut(*parts: np.ndarray) -> list[Utterance]:
    cutter = UtteranceCutter()
    return [utterance for frame in np.concatenate(parts) if (utterance := cutter.hear(frame)) is not None]


def places(utterances: list[Utterance]) -> list[tuple[int, int]]:
    """The first frame of each utterance, and the frame after its last."""
    return [(each.first, each.first + len(each.frames)) for each in utterances]


def test_an_utterance_has_a_little_of_the_quiet_around_it() -> None:
    (one,) = cut(noise(20, 0), noise(10, 0.05), noise(20, 0))
    assert places([one]) == [(20 - BEFORE, 30 + QUIET)]
    assert np.array_equal(np.stack(one.frames)[BEFORE:-QUIET], noise(10, 0.05))


def test_speech_from_the_first_frame_on_begins_there() -> None:
    assert places(cut(noise(10, 0.05), noise(20, 0))) == [(0, 10 + QUIET)]


def test_a_short_pause_does_not_end_an_utterance_and_a_long_one_does() -> None:
    assert len(cut(noise(10, 0.05), noise(QUIET - 1, 0), noise(10, 0.05), noise(20, 0))) == 1
    parts = noise(10, 0.05), noise(QUIET, 0), noise(10, 0.05), noise(20, 0)
    assert places(cut(*parts)) == [(0, 10 + QUIET), (10 + QUIET, 20 + 2 * QUIET)]


def test_no_frame_is_in_two_utterances() -> None:
    utterances = cut(*[part for _ in range(30) for part in (noise(9, 0.05), noise(QUIET + 1, 0))])
    assert len(utterances) == 30
    taken = [frame for start, end in places(utterances) for frame in range(start, end)]
    assert len(taken) == len(set(taken))


def test_silence_noise_and_a_click_are_no_utterances() -> None:
    assert cut(noise(100, 0)) == []
    assert cut(noise(100, 0.0015)) == [], "a quiet room"
    assert cut(noise(50, 0), noise(1, 0.5), noise(50, 0)) == []


def test_a_loud_room_becomes_the_background_and_speech_stands_out_of_it() -> None:
    cutter = UtteranceCutter()
    for frame in noise(400, 0.01):
        cutter.hear(frame)
    assert [cutter.hear(frame) for frame in noise(100, 0.01, seed=1)] == [None] * 100
    spoken = np.concatenate([noise(10, 0.1), noise(20, 0.01)])
    assert sum(cutter.hear(frame) is not None for frame in spoken) == 1


def test_long_speech_is_cut_at_its_quietest_frame_and_nothing_is_lost() -> None:
    speech = noise(2 * LONGEST, 0.05)
    speech[3::4] *= 0.1  # between syllables
    dip = LONGEST - SOUGHT // 2
    speech[dip] *= 0.01
    first, *others = places(cut(speech, noise(20, 0)))
    assert first == (0, dip) and others[0][0] == dip
    assert [end for _, end in others][:-1] == [start for start, _ in others][1:]
    assert others[-1][1] == 2 * LONGEST + QUIET
    assert all(end - start <= LONGEST for start, end in (first, *others))


def test_skipped_frames_count_and_end_nothing() -> None:
    cutter = UtteranceCutter()
    for frame in noise(5, 0.05):
        assert cutter.hear(frame) is None
    for _ in range(30):
        cutter.skip()
    heard = [cutter.hear(frame) for frame in np.concatenate([noise(10, 0.05), noise(QUIET, 0)])]
    assert places([each for each in heard if each]) == [(35, 45 + QUIET)]


def test_broken_samples_spoil_nothing() -> None:
    for value in (np.nan, np.inf):
        broken = np.full((3, 1920), value, np.float32)
        assert places(cut(broken, noise(20, 0), noise(10, 0.05), noise(20, 0)))[-1] == (23 - BEFORE, 33 + QUIET)


def test_times_are_on_the_sessions_clock() -> None:
    utterance = Utterance(tuple(noise(10, 0)), first=100)
    assert [milliseconds(utterance, seconds) for seconds in (0.0, 0.5, 99.0, -1.0)] == [8000, 8500, 8800, 8000]
