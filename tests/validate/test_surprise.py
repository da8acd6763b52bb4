"""The reference judges free conversations: it finds its own words probable, and others not."""

from dataclasses import replace

import numpy as np
import pytest
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.bundle import Bundle, Voice
from pplex.runtime.sampling import GREEDY
from pplex.runtime.session import Runtime
from pplex.validate.recording import SamplingRun, ScenarioRecording, record
from pplex.validate.speech.scenarios import make_scenarios, synthetic_speech
from pplex.validate.surprise import Surprise, surprise, surprise_measures

VOICE, PERSONA = "NATF0", "Hi."


@pytest.fixture(scope="module")
def said(tiny_bundle: Bundle) -> ScenarioRecording:
    """What the bundle says if it always takes the most probable token."""
    scenarios = make_scenarios(synthetic_speech(), 0.1)[:1]
    return record(Runtime(tiny_bundle, 1), scenarios, [SamplingRun("greedy", 0, GREEDY)], VOICE, PERSONA).recordings[0]


def judged(bundle: Bundle, recording: ScenarioRecording) -> Surprise:
    voice = bundle.voices[VOICE]
    assert isinstance(voice, Voice)
    persona = Runtime(bundle, 1).tokenizer.encode_persona(PERSONA)
    return surprise(open_checkpoint(TINY / "checkpoint"), bundle.config, voice, persona, [recording])


def test_any_other_token_surprises_more_than_the_most_probable_one(
    tiny_bundle: Bundle, said: ScenarioRecording
) -> None:
    """The prompt, the delays and the frames are the conversation's: otherwise the own tokens would not be the best."""
    own, last = judged(tiny_bundle, said), len(said.tokens) - 1
    for stream in (0, 1):  # the text, and a code without a delay
        for further in (1, 7, 50, 123):
            tokens = said.tokens.copy()
            tokens[last, stream] = (tokens[last, stream] + further) % 400
            other = judged(tiny_bundle, replace(said, tokens=tokens))
            assert (other.text > own.text) if stream == 0 else (other.audio > own.audio)


def test_random_tokens_surprise(tiny_bundle: Bundle, said: ScenarioRecording) -> None:
    tokens = said.tokens.copy()
    tokens[:, :9] = np.random.default_rng(0).integers(0, 400, tokens[:, :9].shape)
    own, random = judged(tiny_bundle, said), judged(tiny_bundle, replace(said, tokens=tokens))
    assert random.text > own.text + 1 and random.audio > own.audio + 1


def test_measures_are_differences_from_the_reference() -> None:
    text, audio = surprise_measures(Surprise(1.5, 2.0), Surprise(1.0, 2.25))
    assert (text.name, text.value, text.tolerance) == ("conversation.text_surprise", 0.5, None)
    assert (audio.name, audio.value) == ("conversation.audio_surprise", -0.25)
