"""Sampling settings: their limits, greedy sampling, and separate settings for text and audio."""

import numpy as np
import pytest
from conversations import CODES, PCM, PERSONA, Heard, talk, talk_codes

from pplex.runtime.arrays import Tokens
from pplex.runtime.errors import PromptError
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Runtime


def test_greedy_ignores_the_seed_and_earlier_draws(one: Runtime) -> None:
    def conversation(seed: int) -> Heard:
        with one.open("NATF0", PERSONA, seed=seed, sampling=GREEDY) as session:
            return talk(session, PCM[0, :30])

    first = conversation(7)
    with one.open("NATF0", PERSONA, seed=3) as sampled:
        talk(sampled, PCM[0, :10])
    assert conversation(8) == first


def test_greedy_draws_nothing(three: Runtime) -> None:
    stages = three.stages
    with three.open(seed=1) as sampled, three.open(seed=2, sampling=GREEDY) as greedy:
        before = stages.noise.copy(), stages.noise_offset.copy(), stages.noise_stride.copy()
        for frame in range(3):
            three.step({greedy: PCM[0, frame], sampled: PCM[1, frame]})
        for rows, earlier in zip((stages.noise, stages.noise_offset, stages.noise_stride), before, strict=True):
            np.testing.assert_array_equal(rows[greedy.row], earlier[greedy.row])
        assert (stages.noise_offset[sampled.row] != before[1][sampled.row]).any()


def test_a_temperature_near_zero_is_greedy(one: Runtime) -> None:
    conversations = []
    for sampling in (GREEDY, Sampling(1e-6, 25, 1e-6, 250)):
        with one.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
            conversations.append(talk(session, PCM[0, :20]))
    assert conversations[0] == conversations[1]


def test_text_and_audio_have_separate_sampling_settings(one: Runtime) -> None:
    def first_frames(seed: int, sampling: Sampling) -> Tokens:
        """Text and audio of one step, before the first sampled token can influence other tokens."""
        with one.open("NATF0", PERSONA, seed=seed, sampling=sampling) as session:
            return talk_codes(session, CODES[0, :1])

    greedy_text, greedy_audio = Sampling(text_top_k=1), Sampling(audio_top_k=1)
    texts = [{int(first_frames(seed, s)[0, 0]) for seed in range(12)} for s in (greedy_text, Sampling())]
    assert [len(found) > 1 for found in texts] == [False, True]
    by_text: dict[int, set[bytes]] = {}
    for seed in range(12):
        frame = first_frames(seed, greedy_audio)[0]
        by_text.setdefault(int(frame[0]), set()).add(frame[1:2].tobytes())
    assert len(by_text) > 1 and all(len(audio) == 1 for audio in by_text.values())


@pytest.mark.parametrize(
    "sampling", [Sampling(1e-6, 1, 1e-6, 1), Sampling(1e-6, 512, 1e-6, 512), Sampling(1e6, 512, 1e6, 512)]
)
def test_extreme_settings_can_be_used(one: Runtime, sampling: Sampling) -> None:
    with one.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
        replies = talk(session, PCM[0, :20])
    assert np.isfinite(replies.pcm).all()
    assert ((replies.tokens >= 0) & (replies.tokens <= [400] + [2048] * 16)).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-7, 1e7, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["text_temperature", "audio_temperature"])
def test_temperature_out_of_range_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(PromptError, match=rf"^{name} is {temperature}, but must be 1e-06 to 1e\+06 "):
        Sampling(**{name: temperature})


@pytest.mark.parametrize("top_k", [0, -5, 513, 2.5])
@pytest.mark.parametrize("name", ["text_top_k", "audio_top_k"])
def test_top_k_out_of_range_is_refused(name: str, top_k: int) -> None:
    with pytest.raises(PromptError, match=rf"^{name} is {top_k}, but must be a whole number, 1 to 512\.$"):
        Sampling(**{name: top_k})  # type: ignore[arg-type]


def test_all_sampling_mistakes_are_named_at_once() -> None:
    with pytest.raises(PromptError) as refusal:
        Sampling(0, 0, 0, 0)
    for name in ("text_temperature", "text_top_k", "audio_temperature", "audio_top_k"):
        assert f"{name} is 0" in str(refusal.value)
