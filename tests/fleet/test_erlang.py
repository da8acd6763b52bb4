"""Erlang's formulas: published values, another way to compute them, and the search for the smallest number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import poisson

from pplex.fleet.erlang import erlang_b, erlang_c, least, replicas_needed


@pytest.mark.parametrize("slots, load", [(10, 4.46), (20, 12.03), (50, 37.9), (100, 84.1)])
def test_one_percent_is_refused_at_the_loads_of_the_printed_tables(slots: int, load: float) -> None:
    assert erlang_b(slots, load) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("slots, load, waiting", [(1, 0.3, 0.3), (50, 48, 0.694456), (100, 96, 0.587281)])
def test_waiting_as_published(slots: int, load: float, waiting: float) -> None:
    assert erlang_c(slots, load) == pytest.approx(waiting, rel=1e-5)


@pytest.mark.parametrize("slots, load", [(1, 0.5), (10, 5), (12, 30), (768, 722), (33_300, 33_000)])
def test_refusals_are_the_top_of_a_cut_off_poisson_distribution(slots: int, load: float) -> None:
    assert erlang_b(slots, load) == pytest.approx(poisson.pmf(slots, load) / poisson.cdf(slots, load), rel=1e-6)


@pytest.mark.parametrize(
    "slots, load, refused", [(400, 10, 0.0), (10, 1e5, 0.9999), (0, 3, 1.0), (4, 0, 0.0), (0, 0, 1.0)]
)
def test_far_from_balance_nothing_overflows(slots: int, load: float, refused: float) -> None:
    with np.errstate(all="raise"):
        assert erlang_b(slots, load) == pytest.approx(refused, abs=1e-6)


@given(st.integers(1, 300), st.floats(0.01, 290))
def test_more_wait_than_would_be_refused_and_all_wait_if_the_load_is_too_high(slots: int, load: float) -> None:
    assert erlang_b(slots, load) <= erlang_c(slots, load) <= 1
    assert erlang_c(slots, load) == 1 or load < slots


@pytest.mark.parametrize("slots, load", [(8, 722.0), (33, 722.0), (1, 3.0), (256, 20.0)])
@pytest.mark.parametrize("probability", [0.2, 0.01, 1e-6])
def test_one_replica_less_would_not_be_enough(slots: int, load: float, probability: float) -> None:
    replicas = replicas_needed(slots, load, probability)
    assert erlang_c(replicas * slots, load) <= probability
    assert replicas == 1 or erlang_c((replicas - 1) * slots, load) > probability


@given(st.integers(1, 50), st.integers(1, 3000), st.integers(1, 3000))
def test_least_finds_the_threshold(first: int, threshold: int, most: int) -> None:
    asked = list[int]()

    def holds(number: int) -> bool:
        asked.append(number)
        return number >= threshold

    expected = max(first, threshold)
    most = max(first, most)
    assert least(first, holds, most) == (expected if expected <= most else None)
    assert all(first <= number <= most for number in asked) and len(asked) < 40
