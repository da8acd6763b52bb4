"""Seeds and recorded noise: both repeat a conversation."""

import re

import numpy as np
import pytest
from conversations import CODES, PCM, PERSONA, Heard, refused, small_runtime, talk, talk_codes
from folders import TINY

from pplex.runtime.bundle import Bundle
from pplex.runtime.config_file import read_config
from pplex.runtime.errors import NoiseError, PromptError
from pplex.runtime.noise import FrameNoise, Noise, noise_of
from pplex.runtime.session import Runtime


def test_a_seed_repeats_a_conversation_and_other_seeds_differ(one: Runtime) -> None:
    def conversation(seed: int | None) -> Heard:
        with one.open("NATF0", PERSONA, seed=seed) as session:
            return talk(session, PCM[0, :30])

    first = conversation(7)
    assert conversation(7) == first
    others = [conversation(seed) for seed in (0, 8, (1 << 64) - 1)]
    for i, other in enumerate(others):
        for another in (first, *others[:i]):
            assert (other.tokens[:, 1:9] != another.tokens[:, 1:9]).any()
            assert (other.tokens[:, 0] != another.tokens[:, 0]).any()


def test_without_a_seed_conversations_differ_and_can_be_repeated(one: Runtime) -> None:
    with one.open("NATF0", PERSONA) as session:
        seed, first = session.seed, talk(session, PCM[0, :20])
    with one.open("NATF0", PERSONA) as session:
        assert session.seed != seed
        assert (talk(session, PCM[0, :20]).tokens != first.tokens).any()
    with one.open("NATF0", PERSONA, seed=seed) as session:
        assert talk(session, PCM[0, :20]) == first


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5])
def test_seed_out_of_range_is_refused(only: Runtime, seed: float) -> None:
    with refused(
        only, PromptError, rf"The seed is {re.escape(str(seed))}, but must be a whole number, 0 to 2\^64 - 1\."
    ):
        only.open(seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, (1 << 64) - 1])
def test_first_and_last_seed_can_be_used(only: Runtime, seed: int) -> None:
    with only.open(seed=seed) as session:
        assert talk(session, PCM[0, :2]).tokens.shape == (2, 17)


def test_recorded_noise_replaces_the_seed(one: Runtime) -> None:
    with one.open("NATF0", PERSONA, seed=7) as session:
        expected = talk_codes(session, CODES[0, :30])
    first, *others = recorded(7, 16)
    with one.open("NATF0", PERSONA, seed=1, recorded=first) as session:
        pairs = zip(CODES[0], others, strict=False)
        np.testing.assert_array_equal([session.step_codes(*pair) for pair in pairs], expected[:15])
        assert (talk_codes(session, CODES[0, 15:30]) != expected[15:]).any()


def recorded(seed: int, frames: int) -> list[FrameNoise]:
    """The draws of a session with this seed."""
    config = read_config(TINY / "checkpoint" / "config.json").config
    tables = np.empty((1, config.noise_entries), np.float32)
    offset, stride = np.zeros((2, 1, 17), np.int64)
    noise, drawn = Noise(tables, offset, stride, lambda row, start, count: None), []
    noise.open(0, seed)
    text, audio = np.arange(config.text_card), np.tile(np.arange(config.audio_card), (8, 1))
    for _ in range(frames):
        noise.draw(np.array([0]))
        keys = [*zip(offset[0].tolist(), stride[0].tolist(), strict=True)]
        of_audio = np.stack([noise_of(tables[0], *key, audio[0]) for key in keys[1:9]])
        drawn.append(FrameNoise(noise_of(tables[0], *keys[0], text), of_audio, text, audio))
    return drawn


def test_recorded_noise_shifts_no_other_frame(one: Runtime) -> None:
    """A session's own draws, recorded for some frames, change nothing in the other frames."""
    with one.open("NATF0", PERSONA, seed=7) as session:
        expected = talk_codes(session, CODES[0, :30])
    first, *given = [drawn if frame in (0, 1, 5, 6, 20) else None for frame, drawn in enumerate(recorded(7, 31))]
    with one.open("NATF0", PERSONA, seed=7, recorded=first) as session:
        pairs = zip(CODES[0], given, strict=False)
        np.testing.assert_array_equal([session.step_codes(*pair) for pair in pairs], expected)


def test_refused_noise_leaves_all_sessions_untouched(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle, 3)
    first, second = runtime.open("NATF0", PERSONA, seed=1), runtime.open("NATM1", PERSONA, seed=2)
    before = [runtime.ring.save(session.row) for session in (first, second)]
    draws, ids = np.ones((8, 9), np.float32), np.full((8, 9), 5000)
    wide = FrameNoise(draws[0], draws, ids[0], ids)
    with pytest.raises(NoiseError):
        runtime.open(seed=3, recorded=wide)
    with pytest.raises(NoiseError):
        runtime.step_codes({first: CODES[0, 0], second: CODES[0, 1]}, {second: wide})
    assert (first.frame, second.frame) == (0, 0)
    for session, (tokens, provided, step) in zip((first, second), before, strict=True):
        saved = runtime.ring.save(session.row)
        assert (saved[0] == tokens).all() and (saved[1] == provided).all() and saved[2] == step
