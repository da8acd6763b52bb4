"""Drift against scipy's measures, and on histories whose drift is known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import add_node, broken, nodes
from folders import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import rel_entr, softmax

from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.stages import Stages
from pplex.runtime.tolerances import tolerances
from pplex.validate.drift import BLOCK, Drift, Forced, compare, drift, engine_blocks, reference_blocks, voice_distance
from pplex.validate.sections.drift import VOICE_MARGIN

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
STEPS, TEXT, CARD, BOOKS = 3, 60, 300, 2


def logits(card: int) -> st.SearchStrategy[Floats]:
    shape = (STEPS, card) if card == TEXT else (STEPS, BOOKS, card)
    return arrays(np.float32, shape, elements=st.floats(-30, 30, width=32))


@pytest.fixture(scope="module")
def codes() -> Tokens:
    return token_history(CHECKPOINT, unheard_pieces(CHECKPOINT.config, 2), 120)


def compared(text: tuple[Floats, Floats], audio: tuple[Floats, Floats]) -> Drift:
    hidden = np.ones((STEPS, 4), np.float32)
    got, expected = Forced(hidden, text[0], audio[0]), Forced(hidden, text[1], audio[1])
    return compare(got, expected, np.zeros(STEPS, np.int64), np.full((STEPS, BOOKS), 7))


@settings(max_examples=25, deadline=None)
@given(logits(TEXT), logits(TEXT), logits(CARD), logits(CARD))
def test_divergence_and_likelihood_equal_those_of_scipy(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    found = compared((a, b), (c, d))
    for kl, got, expected in ((found.text_kl, a, b), (found.audio_kl, c, d)):
        p, q = (softmax(x.astype(np.float64), -1) for x in (expected, got))
        np.testing.assert_allclose(kl, rel_entr(p, q).sum(-1), rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(found.text_nll, -scipy_log_softmax(b.astype(np.float64), -1)[:, 0], rtol=1e-9)
    np.testing.assert_allclose(found.audio_own_nll, -scipy_log_softmax(c.astype(np.float64), -1)[..., 7], rtol=1e-9)


def test_top_k_in_common_is_counted() -> None:
    expected = -np.arange(TEXT, dtype=np.float32) * np.ones((STEPS, 1), np.float32)  # the first 25 are the top
    got = np.roll(expected, 5, axis=1)  # 20 of them still are
    audio = np.zeros((STEPS, BOOKS, CARD), np.float32)
    found = compared((got, expected), (audio, audio))
    assert (found.text_overlap == 20 / 25).all() and (found.text_same == 0).all()


def test_a_tied_choice_is_the_same_choice() -> None:
    expected = np.zeros((STEPS, TEXT), np.float32)
    expected[:, :2] = 5, 5 - 1e-6
    audio = np.zeros((STEPS, BOOKS, CARD), np.float32)
    assert (compared((expected[:, [1, 0, *range(2, TEXT)]], expected), (audio, audio)).text_same == 1).all()
    expected[:, 1] = 5 - 1e-3
    assert (compared((expected[:, [1, 0, *range(2, TEXT)]], expected), (audio, audio)).text_same == 0).all()


def test_next_entries_that_are_not_tokens_have_no_likelihood() -> None:
    zeros = np.zeros((STEPS, TEXT), np.float32), np.zeros((STEPS, BOOKS, CARD), np.float32)
    forced = Forced(np.ones((STEPS, 4), np.float32), *zeros)
    found = compare(forced, forced, np.array([-1, TEXT, 0]), np.zeros((STEPS, BOOKS), np.int64))
    assert np.isnan(found.text_nll).tolist() == [True, True, False]


def test_the_reference_does_not_drift_from_itself(codes: Tokens) -> None:
    found = drift(*(reference_blocks(CHECKPOINT, CHECKPOINT.config, codes) for _ in range(2)), codes=codes)
    assert len(found.hidden) == len(codes) - 1 > BLOCK
    for zero in (found.hidden, found.text_kl, found.audio_kl):
        assert (zero == 0).all()
    for one in (found.text_same, found.audio_same, found.text_overlap, found.audio_overlap):
        assert (one == 1).all()


def test_a_float32_bundle_equals_the_reference_past_the_end_of_the_ring(tiny_bundle: Bundle, codes: Tokens) -> None:
    config, stages = tiny_bundle.config, Stages(tiny_bundle, 1, logits=True)
    found = drift(engine_blocks(stages, codes), reference_blocks(CHECKPOINT, config, codes), codes)
    assert len(found.hidden) > config.temporal.capacity
    assert found.hidden.max() < 1e-9 and found.text_kl.max() < 1e-8 and found.audio_kl.max() < 1e-6
    assert (found.text_same == 1).all() and (found.audio_same == 1).all()


def test_one_wrong_token_in_the_history_is_found_at_its_step(tiny_bundle: Bundle, codes: Tokens) -> None:
    config, stages, changed = tiny_bundle.config, Stages(tiny_bundle, 1, logits=True), codes.copy()
    changed[70, 3] = (changed[70, 3] + 1) % config.audio_card

    def engine() -> Iterator[Forced]:
        return engine_blocks(stages, changed)

    found = drift(engine(), reference_blocks(CHECKPOINT, config, codes), codes)
    assert np.flatnonzero(found.hidden > 1e-6)[0] == 70


def embedding_ignored(model: onnx.ModelProto) -> None:
    """The graph ignores the voice's embeddings."""
    adds = next(node for node in nodes(model, "Add") if "embedding" in node.input)
    nothing = add_node(model, adds, "Sub", ["embedding", "embedding"], "no.embedding")
    adds.input[:] = [nothing if name == "embedding" else name for name in adds.input]


def test_an_ignored_voice_exceeds_the_tolerance(tiny_bundle: Bundle, tmp_path: Path) -> None:
    config, voice = tiny_bundle.config, tiny_bundle.voices["NATM1"]
    deaf = broken(tiny_bundle, "temporal", embedding_ignored, tmp_path)
    sound, faulty = (
        voice_distance(Stages(bundle, 1, logits=True), CHECKPOINT, config, voice) for bundle in (tiny_bundle, deaf)
    )
    assert sound < 1e-10 and faulty > VOICE_MARGIN * tolerances("temporal", "int4")["hidden"]
