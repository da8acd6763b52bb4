"""The prompt of a session: its frames, their order, and how many fit."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Voice
from pplex.runtime.config import CODEBOOKS, RELEASED, SILENCE_CODES, SILENCE_FRAMES, SINE_CODES, ModelConfig
from pplex.runtime.errors import PromptError
from pplex.runtime.prompt import make_prompt

PADDING = RELEASED.text_padding
PERSONA = [17, 4000, 5, 0, 31999]
SMALL = replace(RELEASED, temporal=replace(RELEASED.temporal, capacity=96))
CODES = np.arange(9 * CODEBOOKS).reshape(9, CODEBOOKS) + 100
RECORDED = Voice(np.zeros((29, RELEASED.temporal.dim), np.float32), np.zeros((RELEASED.num_streams, 4), np.int64))
VOICES = {"none": None, "codes": CODES, "recorded": RECORDED}
each_voice = pytest.mark.parametrize("voice", VOICES.values(), ids=VOICES)


def silence(frames: int, text: int = PADDING) -> list[tuple[int, tuple[int, ...]]]:
    return [(text, SILENCE_CODES)] * frames


def described(tokens: Tokens) -> list[tuple[int, tuple[int, ...]]]:
    """Text and agent codes of each frame [17]; the user's part must be the tone."""
    assert tokens.dtype == np.int64 and tokens.shape[1:] == (RELEASED.num_streams,)
    assert (tokens[:, 1 + CODEBOOKS :] == SINE_CODES).all()
    return [(frame[0], tuple(frame[1 : 1 + CODEBOOKS])) for frame in tokens.tolist()]


def test_recorded_voice_is_followed_by_silence_persona_silence() -> None:
    prompt = make_prompt(RELEASED, RECORDED, PERSONA)
    persona = [(token, SILENCE_CODES) for token in PERSONA]
    assert described(prompt.tokens) == silence(SILENCE_FRAMES) + persona + silence(SILENCE_FRAMES)
    assert prompt.voice is RECORDED
    assert (prompt.voice_steps, prompt.steps) == (29, 29 + 6 + len(PERSONA) + 6)


def test_encoded_voice_loses_its_first_frame() -> None:
    prompt = make_prompt(RELEASED, CODES, PERSONA)
    voice = [(PADDING, tuple(frame)) for frame in CODES[1:].tolist()]
    persona = [(token, SILENCE_CODES) for token in PERSONA]
    assert described(prompt.tokens) == voice + silence(SILENCE_FRAMES) + persona + silence(SILENCE_FRAMES)
    assert prompt.voice is None
    assert (prompt.voice_steps, prompt.steps) == (0, 8 + 6 + len(PERSONA) + 6)


def test_without_a_voice_the_first_silent_frame_is_lost() -> None:
    prompt = make_prompt(RELEASED, None, PERSONA)
    persona = [(token, SILENCE_CODES) for token in PERSONA]
    assert described(prompt.tokens) == silence(SILENCE_FRAMES - 1) + persona + silence(SILENCE_FRAMES)
    assert prompt.voice is None
    assert (prompt.voice_steps, prompt.steps) == (0, 5 + len(PERSONA) + 6)


def test_an_encoded_voice_of_one_frame_keeps_the_whole_silence() -> None:
    assert described(make_prompt(RELEASED, CODES[:1], []).tokens) == silence(2 * SILENCE_FRAMES)


@each_voice
def test_without_a_persona_the_silences_meet(voice: Voice | Tokens | None) -> None:
    prompt = make_prompt(RELEASED, voice, [])
    expected = 2 * SILENCE_FRAMES if voice is not None else 2 * SILENCE_FRAMES - 1
    assert described(prompt.tokens)[-expected:] == silence(expected)


def longest_persona(config: ModelConfig, voice: Voice | Tokens | None) -> int:
    """Tokens that fit: the window is capacity - 1 steps, and the first one of the conversation must be in it."""
    return config.temporal.capacity - 2 - make_prompt(config, voice, []).steps


@each_voice
@pytest.mark.parametrize("config", [RELEASED, SMALL], ids=["released", "small"])
def test_persona_may_fill_the_ring_but_for_the_first_step(config: ModelConfig, voice: Voice | Tokens | None) -> None:
    longest = longest_persona(config, voice)
    assert make_prompt(config, voice, [5] * longest).steps == config.temporal.capacity - 2
    with pytest.raises(PromptError) as refused:
        make_prompt(config, voice, [5] * (longest + 1))
    numbers = [int(number) for number in re.findall(r"\d+", str(refused.value))]
    room = config.temporal.capacity - 2
    assert numbers == [room + 1, longest + 1, room - longest, room, longest]


def test_voice_that_fills_the_ring_alone_is_refused() -> None:
    long = Voice(np.zeros((95, RELEASED.temporal.dim), np.float32), RECORDED.cache)
    with pytest.raises(
        PromptError, match=r"takes 110 steps \(persona 3, voice and silences 107\).* remembers 94.*shorter voice"
    ):
        make_prompt(SMALL, long, [5, 6, 7])


@pytest.mark.parametrize("token", [-1, -(1 << 40), RELEASED.text_card + 1, 1 << 40])
def test_token_the_model_does_not_have_is_named(token: int) -> None:
    with pytest.raises(PromptError, match=rf"token {token};.* 0 to {RELEASED.text_card}\."):
        make_prompt(RELEASED, None, [5, token, 6])


@pytest.mark.parametrize("token", [0, RELEASED.text_card])
def test_first_and_last_token_are_accepted(token: int) -> None:
    assert make_prompt(RELEASED, None, [token]).tokens[SILENCE_FRAMES - 1, 0] == token
