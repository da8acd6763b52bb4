"""Near ties and faults: how near each draw is to another outcome, and the first difference of two conversations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from another_processor import on_another_processor
from folders import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.graphs import graph_specs
from pplex.runtime.session import Runtime
from pplex.runtime.token_path import USER
from pplex.validate.golden import check_golden
from pplex.validate.parting import Judge, TokenTrace, poisson_limit
from pplex.validate.recording import make_runs, record
from pplex.validate.reference import as_float32, torch_backend
from pplex.validate.sections.conversation import conversation_section
from pplex.validate.speech.scenarios import make_scenarios, synthetic_speech
from pplex.validate.standings import NEAREST, Standings, standing

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
JUDGE = Judge(CHECKPOINT, CHECKPOINT.config, graph_specs(CHECKPOINT.config))
FRAMES, SPREAD = 6, 2.0
ALLOWED = 4e-5 * SPREAD


# One draw.


def drawn(logits: Floats, noise: Floats, temperature: float, top_k: int) -> int:
    """The sampled token among the top k."""
    ranked = np.argsort(-logits, kind="stable")[:top_k]
    return int(ranked[(logits[ranked] - temperature * np.log(noise[ranked])).argmax()])


def ranked(logits: Floats, noise: Floats, temperature: float, top_k: int) -> Standings:
    order = np.argsort(-logits, kind="stable")
    return standing(order, logits[order], noise[order], temperature, top_k, 1.0)


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([1, 2, 5, 12, 40]), st.floats(0.1, 2))
def test_logits_that_move_by_less_than_the_distance_change_no_draw(seed: int, top_k: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    logits, noise = random.normal(0, 1, 20), random.exponential(size=20)
    found = ranked(logits, noise, temperature, top_k)
    winner = drawn(logits, noise, temperature, top_k)
    assert found.tokens[0] == winner and found.distances[0] == 0 and (np.diff(found.distances) >= 0).all()
    for _ in range(30):
        moved = logits + 0.499 * found.distances[1] * random.uniform(-1, 1, 20)
        assert drawn(moved, noise, temperature, top_k) == winner


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([1, 2, 5, 12, 40]), st.floats(0.1, 2))
def test_logits_that_move_by_a_little_more_change_the_draw(seed: int, top_k: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    logits, noise = random.normal(0, 1, 20), random.exponential(size=20)
    found = ranked(logits, noise, temperature, top_k)
    winner, other = found.tokens[:2].tolist()
    order, step = np.argsort(-logits), found.distances[1] / 2 * 1.000001 + 1e-9
    ways = {
        "wins": ([other], [t for t in order if t != other]),
        "is left": ([t for t in order if t != winner], [winner]),
    }
    outcomes = []
    for raised, lowered in ways.values():
        moved = logits.copy()
        moved[[*raised]] += step
        moved[[*lowered]] -= step
        outcomes.append(drawn(moved, noise, temperature, top_k))
    assert set(outcomes) != {winner}


def test_fewer_tokens_than_kept_candidates_are_padded() -> None:
    found = ranked(np.array([1.0, 0.0]), np.ones(2), 1.0, 5)
    assert found.tokens.tolist() == [0, 1, -1, -1] and found.distances.tolist() == [0, 1, np.inf, np.inf]


# Two conversations.


def spoken(distance: float = 1.0) -> TokenTrace:
    """All tokens are 5; every draw becomes 6 if logits move by `distance`."""
    tokens = np.full((FRAMES, 17), 5)
    nearest = np.tile(np.array([5, 6, 7, 8]), (1 + FRAMES, 9, 1))
    distances = np.tile(np.array([0, distance, 2.0, 3.0]), (1 + FRAMES, 9, 1))
    return TokenTrace("planted", tokens, Standings(nearest, distances, np.full((1 + FRAMES, 9), SPREAD)))


def changed(conversation: TokenTrace, *places: tuple[int, int], token: int = 6) -> TokenTrace:
    tokens: Tokens = conversation.tokens.copy()
    for place in places:
        tokens[place] = token
    return replace(conversation, tokens=tokens)


def test_equal_conversations_do_not_part() -> None:
    assert JUDGE.parting(spoken(), spoken()) is None


@pytest.mark.parametrize("stream, name", [(0, "text"), (1, "agent 0"), (8, "agent 7")])
@pytest.mark.parametrize("share, explained", [(0.9, True), (1.1, False)])
def test_a_draw_is_explained_up_to_the_allowed_distance(stream: int, name: str, share: float, explained: bool) -> None:
    theirs = spoken(share * ALLOWED)
    parting = JUDGE.parting(changed(theirs, (3, stream)), theirs)
    assert parting is not None and parting.explained is explained and parting.is_of_a_draw
    assert (parting.frame, parting.stream, parting.expected, parting.got) == (3, (stream and name) or "text", 5, 6)
    assert "planted, frame 3" in str(parting)


def test_a_token_other_than_the_near_one_is_not_explained() -> None:
    theirs = spoken(1e-9)
    parting = JUDGE.parting(changed(theirs, (3, 4), token=9), theirs)
    assert parting is not None and not parting.explained and parting.distance == np.inf


def test_first_difference_follows_the_order_of_sampling() -> None:
    """Text and the first codebook of a reply were drawn a step before its other codebooks, which are delayed."""
    theirs = spoken()
    for places, first in (
        ([(4, 1), (3, 2)], (3, 2)),  # the same step: the text's is made in frame 4's reply; codebook 0 comes first
        ([(3, 1), (3, 2)], (3, 1)),
        ([(4, 0), (4, 2)], (4, 0)),
        ([(4, USER), (4, 0)], (4, 0)),  # drawn in frame 3's reply, before the user's codes of frame 4
        ([(4, USER), (5, 0)], (4, USER)),  # a reply hears the codes of its own frame
        ([(4, USER + 2), (4, 8)], (4, USER + 2)),
    ):
        parting = JUDGE.parting(changed(theirs, *places), theirs)
        assert parting is not None
        streams = ["text", *(f"agent {k}" for k in range(8)), *(f"user {k}" for k in range(8))]
        expected = (4, 1) if places == [(4, 1), (3, 2)] else first
        assert (parting.frame, streams.index(parting.stream)) == expected, places


def test_frames_after_a_near_tie_are_not_compared() -> None:
    """Text of frame 4 is drawn before the delayed codebooks of frame 3, which are drawn from it."""
    theirs = spoken(0.5 * ALLOWED)
    parting = JUDGE.parting(changed(theirs, (4, 0), (3, 2), (3, 8), (5, 3)), theirs)
    assert parting is not None and parting.explained
    assert (parting.frame, parting.stream, parting.equal_frames) == (4, "text", 3)


@pytest.mark.parametrize("share, explained", [(0.9, True), (1.1, False)])
def test_the_first_draws_are_explained_by_the_step_before_the_first_frame(share: float, explained: bool) -> None:
    """Only these draws are near a tie; text and the first codebook of frame 0 come from them."""
    far = spoken()
    assert far.standings is not None
    near = far.standings.distances.copy()
    near[0, :, 1] = share * ALLOWED
    theirs = replace(far, standings=replace(far.standings, distances=near))
    for place, is_explained in (((0, 0), explained), ((0, 1), explained), ((0, 2), False), ((1, 0), False)):
        parting = JUDGE.parting(changed(theirs, place), theirs)
        assert parting is not None and parting.explained is is_explained, place


def test_a_user_code_is_explained_at_a_boundary_only() -> None:
    from pplex.export.mimi import MimiEncoder
    from pplex.export.weights import load
    from pplex.runtime.audio import frames
    from pplex.validate.boundaries import boundary_distances
    from pplex.validate.offline_codec import latents_at_once

    user = make_scenarios(synthetic_speech(), 0.1)[0].pcm
    encoder = load("mimi_encode", CHECKPOINT)
    assert isinstance(encoder, MimiEncoder)
    latents = latents_at_once(encoder, CHECKPOINT.config, frames(user, 1920))
    codes = encoder.quantizer.encode(latents).numpy()
    theirs = TokenTrace("heard", np.full((len(codes), 17), 5), spoken().standings, user)
    theirs.tokens[:, USER:] = codes
    other = codes.copy()
    other[5, 0] = (other[5, 0] + 1) % 2048
    far = boundary_distances(encoder.quantizer, latents, other)[5, 0]
    ours = changed(theirs, (5, USER), token=int(other[5, 0]))
    parting = JUDGE.parting(ours, theirs)
    assert parting is not None and not parting.is_of_a_draw
    assert (parting.frame, parting.stream) == (5, "user 0")
    assert parting.distance == pytest.approx(far, rel=1e-4) and not parting.explained


def test_plausible_number_of_explained_draws_is_limited() -> None:
    assert JUDGE.plausible([spoken(1.0)]) == 0
    assert 1 <= JUDGE.plausible([spoken(ALLOWED)]) <= 8  # 54 draws within 50 times what is allowed
    assert poisson_limit(0.0, 1e-3) == 0 and poisson_limit(1.0, 1e-3) == 5 and 20 < poisson_limit(10.0, 1e-3) < 24


# Engines of another processor.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_golden_holds_on_another_processor(tiny_bundle: Bundle, tmp_path: Path, seed: int) -> None:
    other = on_another_processor(tiny_bundle, tmp_path / "other", seed)
    assert all(check.passed for check in check_golden(other, TINY))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_conversations_on_another_processor_differ_at_near_ties_only(
    tiny_bundle: Bundle, tmp_path: Path, seed: int
) -> None:
    other = on_another_processor(tiny_bundle, tmp_path / "other", seed)
    scenarios, runs = make_scenarios(synthetic_speech(100 * seed), 0.3), make_runs([seed, seed + 10])
    backend = torch_backend(CHECKPOINT, tiny_bundle.config)
    engine = Runtime(other, 4, threads=1 + seed % 2, batches=[[8], [1, 4, 8]][seed % 2])
    reference = Runtime(as_float32(tiny_bundle), 4, device=backend, logits=True)
    ours, theirs = (record(side, scenarios, runs, "NATM1", "Hi.").recordings for side in (engine, reference))
    section = conversation_section(ours, theirs, tiny_bundle.precision, lambda pcm: [], JUDGE)
    assert not section.failures, section.failures


@pytest.mark.slow
def test_another_engine_is_not_another_processor(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Weights are off by 0.01 %: conversations part without a tie."""
    other = on_another_processor(tiny_bundle, tmp_path / "other", 0, ulps=2000)
    runs, scenarios = make_runs([0, 1]), make_scenarios(synthetic_speech(), 0.3)
    backend = torch_backend(CHECKPOINT, tiny_bundle.config)
    engine = Runtime(other, 4, batches=[4])
    reference = Runtime(as_float32(tiny_bundle), 4, device=backend, logits=True)
    ours, theirs = (record(side, scenarios, runs, "NATM1", "Hi.").recordings for side in (engine, reference))
    section = conversation_section(ours, theirs, tiny_bundle.precision, lambda pcm: [], JUDGE)
    assert [measure.name for measure in section.failures][:1] == ["conversation.tokens_equal"]


def test_standings_are_sorted_by_distance(tiny_bundle: Bundle) -> None:
    reference = Runtime(tiny_bundle, 1, logits=True)
    (recording,) = record(
        reference, make_scenarios(synthetic_speech(), 0.1)[:1], make_runs([])[:1], None, ""
    ).recordings
    found = recording.standings
    assert found is not None and found.tokens.shape == (1 + len(recording.tokens), 9, NEAREST)
    np.testing.assert_array_equal(found.tokens[:-1, :2, 0], recording.tokens[:, :2])
    np.testing.assert_array_equal(found.tokens[1:, 2:, 0], recording.tokens[:, 2:9])
