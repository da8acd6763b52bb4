"""A Moshi model: no prompt, and rings that are full when they are full. Its golden data is checked in test_golden.py."""

from dataclasses import replace

import numpy as np
import pytest
from conversations import CODES, PCM, WAV, assert_same, heard, is_clear, ring_of, small_runtime, talk, talk_codes
from folders import MOSHI

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.config_file import read_config
from pplex.runtime.errors import ConfigError, PromptError
from pplex.runtime.session import Runtime
from pplex.validate.golden import check_codec, check_teacher_forced

PLAIN = read_config(MOSHI / "checkpoint" / "config.json").config


@pytest.fixture(scope="module")
def moshi(moshi_bundle: Bundle) -> Runtime:
    return small_runtime(moshi_bundle, 2)


def test_a_conversation_begins_with_one_step_and_nothing_forced(moshi: Runtime) -> None:
    with moshi.open(seed=1) as session:
        assert moshi.ring.step[session.row] == 2
        rings = ring_of(session).values()
        assert all(ring[:, :1].any() and not ring[:, 1:].any() for ring in rings)
        assert session.prompt_end is not None
        assert session.prompt_end.tolist() == list(moshi.config.initial_tokens)
        first = session.step_codes(CODES[0, 0])
        assert (first[:9] < [400, *[2048] * 8]).all() and first[9:].tolist() == CODES[0, 0].tolist()
    assert is_clear(moshi)


@pytest.mark.parametrize("prompt", [{"voice": WAV}, {"voice": "NATF0"}, {"persona": "You are kind."}, {"persona": [5]}])
def test_a_prompt_is_refused(moshi: Runtime, prompt: dict[str, object]) -> None:
    for refuse in (moshi.open, moshi.check_prompt):
        with pytest.raises(
            PromptError, match="a Moshi model: it has one voice, and takes neither a voice nor a persona"
        ):
            refuse(**prompt)  # type: ignore[operator]
    assert is_clear(moshi)


def test_a_conversation_does_not_depend_on_the_others(moshi: Runtime) -> None:
    with moshi.open(seed=3) as alone:
        expected = talk_codes(alone, CODES[0, :120])
    with moshi.open(seed=4) as other, moshi.open(seed=3) as session:
        assert session.row == 1
        got = [moshi.step_codes({other: CODES[1, i], session: CODES[0, i]})[session] for i in range(120)]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "leaves"])
def test_a_conversation_that_has_not_begun_does_not_stop_the_others(moshi: Runtime, leaves: bool) -> None:
    with moshi.open(seed=3) as alone:
        expected = talk(alone, PCM[0, :6])
    with moshi.open(seed=3) as session:
        said = [session.step(frame) for frame in PCM[0, :2]]
        waiting = moshi.open(seed=4)
        if leaves:
            waiting.close()
            waiting = moshi.open(seed=5)
        said += [session.step(frame) for frame in PCM[0, 2:6]]
        waiting.step(PCM[1, 0])
        waiting.close()
    assert heard(said) == expected
    assert is_clear(moshi)


def test_a_second_conversation_equals_the_first(moshi: Runtime) -> None:
    """Nothing is primed, so nothing is kept of a prompt."""
    said, rings = [], []
    for _ in range(2):
        with moshi.open(seed=5) as session:
            said.append(talk_codes(session, CODES[0, :5]).tolist())
            rings.append(ring_of(session))
    assert said[0] == said[1]
    assert_same(*rings)


def test_a_full_ring_reads_one_step_more_than_that_of_personaplex(moshi_bundle: Bundle) -> None:
    """PersonaPlex's window fails Moshi's golden data."""
    config = moshi_bundle.config
    assert (config.temporal.capacity, config.mimi.window) == (PLAIN.temporal.capacity + 1, PLAIN.mimi.window + 1)
    shorter = replace(config, temporal=replace(config.temporal, capacity=config.temporal.capacity - 1))
    failed = {
        check.name for check in check_teacher_forced(replace(moshi_bundle, config=shorter), MOSHI) if not check.passed
    }
    assert {"hidden", "text logits"} <= failed


@pytest.mark.parametrize("latest, allowed", [(1, True), (2, False)])
def test_later_streams_need_a_prompt(latest: int, allowed: bool) -> None:
    config: ModelConfig = replace(PLAIN, delays=(0, 0, *[latest] * 7, 0, *[latest] * 7))
    if allowed:
        assert config.as_moshi().family == "moshi"
    else:
        with pytest.raises(ConfigError, match="delays must be 0 or 1 in a Moshi model"):
            config.as_moshi()


def test_codec_of_a_moshi_model_is_checked_past_its_window(moshi_bundle: Bundle) -> None:
    checks = list(check_codec(moshi_bundle, open_checkpoint(MOSHI / "checkpoint"), MOSHI))
    frames = checks[0].compared // 8
    assert 2 * frames > 2 * moshi_bundle.config.mimi.window and all(check.passed for check in checks)
