"""The measures, at the borders of their definitions; distances and tests against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats
from scipy.interpolate import interp1d
from scipy.spatial.distance import jensenshannon

from pplex.fdb.measures import (
    Backchannels,
    Mean,
    distance_from_people,
    frequency,
    jensen_shannon_distance,
    latency,
    takes_over,
)
from pplex.fdb.significance import mcnemar, sign_flips
from pplex.fdb.words import Word

weights = some.lists(some.floats(0, 1), min_size=2, max_size=60).filter(lambda found: sum(found) > 1e-3)


def words(*times: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(Word("word", *time) for time in times)


@pytest.mark.parametrize(
    "times, expected",
    [
        ([], False),
        ([(0, 0.9)], False),
        ([(0, 1.0)], True),
        ([(0, 0.1), (0.95, 1.0)], True),  # also two far from each other
        ([(0, 0.1)] * 3, False),
        ([(0, 0.1)] * 4, True),
    ],
)
def test_a_turn_lasts_a_second_or_has_more_than_three_words(times: list[tuple[float, float]], expected: bool) -> None:
    assert takes_over(words(*times)) is expected


def test_latency_counts_from_the_users_end_and_is_never_negative() -> None:
    assert latency(words((3.5, 4)), 3.0) == 0.5
    assert latency(words((2.5, 4)), 3.0) == 0


def test_a_segment_of_more_than_three_seconds_ends_the_search() -> None:
    found = Backchannels(((1, 1.5), (2, 5.1), (6, 6.5)), ())
    assert found.takes_over and found.heard == ((1, 1.5),) == found.since_last_turn


def test_the_last_segment_decides_and_earlier_turns_do_not() -> None:
    turn, mm = (1.0, 2.5), (4.0, 4.5)
    assert not Backchannels((turn, mm), ()).takes_over
    assert Backchannels((mm, (5.0, 6.5)), ()).takes_over
    assert not Backchannels((), ()).takes_over


def test_a_short_segment_with_more_than_two_words_is_a_turn() -> None:
    three = words((4.0, 4.1), (4.2, 4.3), (4.4, 4.6))  # the last one ends after the segment, and counts
    assert Backchannels(((4.0, 4.5),), three).takes_over
    assert not Backchannels(((4.0, 4.5),), three[:2]).takes_over
    assert not Backchannels(((4.0, 4.5),), (*three[:2], Word("later", 4.6, 4.9))).takes_over


def test_before_the_commit_a_short_turn_discarded_earlier_backchannels() -> None:
    found = Backchannels(((1, 1.5), (2, 4), (5, 5.5), (6, 6.5)), ())
    assert found.heard == ((1, 1.5), (2, 4), (5, 5.5), (6, 6.5))
    assert found.since_last_turn == ((5, 5.5), (6, 6.5))
    assert frequency(found.heard, 10) == 0.4 and frequency(found.since_last_turn, 10) == 0.2


@given(some.lists(some.tuples(some.floats(0.01, 1), some.floats(0.01, 1) | some.just(0.0)), min_size=1, max_size=60))
def test_the_distance_is_scipys(pairs: list[tuple[float, float]]) -> None:
    p, q = [1.0, *(p for p, _ in pairs)], [1.0, *(q for _, q in pairs)]
    with np.errstate(invalid="ignore"):  # scipy takes the root of -1e-17 for equal histograms
        expected = float(np.nan_to_num(jensenshannon(p, q)))
    assert jensen_shannon_distance(p, q) == pytest.approx(expected, abs=1e-7)


@given(weights, some.lists(some.tuples(some.floats(0, 9), some.floats(0, 0.9)), min_size=1, max_size=6))
def test_backchannels_against_people_as_scipy_computes_it(
    people: list[float], heard: list[tuple[float, float]]
) -> None:
    segments = [(start, start + length) for start, length in heard]
    counts = np.zeros(51)
    for start, end in segments:
        for bin_ in range(math.floor(start / 0.2), min(50, math.floor(end / 0.2)) + 1):
            counts[bin_] += 1
    stretched = interp1d(np.linspace(0, 1, len(people)), people)(np.linspace(0, 1, 51))
    expected = float(jensenshannon(counts + 1e-10, stretched))
    assert distance_from_people(segments, 10.0, people) == pytest.approx(expected, abs=1e-7)


def test_without_a_backchannel_the_distance_is_one() -> None:
    assert distance_from_people([], 10.0, [1.0]) == 1


def test_a_distribution_of_one_weight_is_even() -> None:
    assert distance_from_people([(0, 9.99)], 9.99, [0.3]) == pytest.approx(0, abs=1e-6)


def test_standard_errors() -> None:
    assert Mean.of([]) == Mean(None, None, 0)
    assert Mean.of([0.5]) == Mean(0.5, None, 1)
    values = [1.0] * 80 + [0.0] * 57
    assert Mean.of(values).error == pytest.approx(float(stats.sem(values)))
    assert Mean.of(values).error == pytest.approx(0.042, abs=0.001)


@given(some.integers(0, 60), some.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 5, 12, 40])
def test_sign_flips_are_scipys_permutation_test(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count)
    resamples = np.inf if count <= 12 else 20_000
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=resamples, rng=np.random.default_rng(1)
    )
    assert sign_flips(list(values)) == pytest.approx(expected.pvalue, abs=1e-9 if count <= 12 else 0.02)


def test_equal_agents_do_not_differ() -> None:
    assert sign_flips([]) == sign_flips([0.0, 0.0]) == mcnemar(0, 0) == 1
