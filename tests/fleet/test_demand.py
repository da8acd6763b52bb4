"""The load that users describe in their own units."""

import random
from itertools import islice, pairwise, takewhile

import pytest

from pplex.fleet.demand import DAY_S, Demand, find_demand, parse_rate, parse_share, rate_text
from pplex.runtime.errors import ConfigError


@pytest.mark.parametrize(
    "text, per_s",
    [("2/s", 2), ("120/min", 2), ("7200/h", 2), (" 0.5 / S ", 0.5), ("90/minute", 1.5), ("1/hour", 1 / 3600)],
)
def test_rates_have_a_unit(text: str, per_s: float) -> None:
    assert parse_rate(text) == pytest.approx(per_s)
    assert parse_rate(rate_text(per_s)) == pytest.approx(per_s, rel=0.01)


@pytest.mark.parametrize(
    "text", ["2", "-2/s", "0/s", "nan/s", "inf/s", "2/day", "2/", "/s", "1e3/s", "9" * 400 + "/s", "٣/s"]
)
def test_other_rates_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a rate of arrivals.*2/s, 120/min"):
        parse_rate(text)


@pytest.mark.parametrize("text, share", [("1%", 0.01), ("0.01", 0.01), ("0.5 %", 0.005), ("99%", 0.99)])
def test_probabilities(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["1", "0", "100%", "0%", "-1%", "nan", "1 percent", "5"])
def test_other_probabilities_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a probability"):
        parse_share(text)


@pytest.mark.parametrize("known", [(720, 6, None), (720, None, 2), (None, 6, 2), (720, 6, 2), (700, 6, 2)])
def test_two_of_three_figures_give_the_third(known: tuple[float | None, float | None, float | None]) -> None:
    known = tuple(None if one is None else float(one) for one in known)  # type: ignore[assignment]
    demand, notes = find_demand(*known)
    assert demand == Demand(pytest.approx(2), pytest.approx(360)) and not notes
    assert demand.conversations == pytest.approx(720)


@pytest.mark.parametrize("conversations, planned", [(500.0, 720), (1000.0, 1000)])
def test_a_contradiction_is_named_and_the_larger_load_is_planned(conversations: float, planned: float) -> None:
    demand, (note,) = find_demand(conversations, 6.0, 2.0)
    assert demand.conversations == pytest.approx(planned)
    assert "contradict" in note and f"720 conversations at once, not {conversations:,.0f}" in note


@pytest.mark.parametrize("known", [(500.0, None, None), (None, 6.0, None), (None, None, 2.0), (None, None, None)])
def test_one_figure_is_not_enough(known: tuple[float | None, float | None, float | None]) -> None:
    with pytest.raises(ConfigError, match="two of these three"):
        find_demand(*known)


def test_arrivals_are_random_with_the_given_rate_and_length() -> None:
    clients = list(islice(Demand(2.0, 30.0).arrivals(random.Random(0)), 20_000))
    assert clients[-1].at_s == pytest.approx(10_000, rel=0.05)
    assert sum(one.seconds for one in clients) / 20_000 == pytest.approx(30, rel=0.05)
    gaps = [after.at_s - before.at_s for before, after in pairwise(clients)]
    assert sum(gap > 0.5 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)  # e^-1: exponential


def test_nights_are_quieter() -> None:
    demand = Demand(0.5, 30.0, quiet=0.2)
    day = list(takewhile(lambda one: one.at_s < DAY_S, demand.arrivals(random.Random(1))))
    night = sum(one.at_s < DAY_S / 8 or one.at_s > 7 * DAY_S / 8 for one in day)
    noon = sum(3 * DAY_S / 8 < one.at_s < 5 * DAY_S / 8 for one in day)
    assert night / noon == pytest.approx(0.27, abs=0.03)
    assert len(day) == pytest.approx(0.6 * 0.5 * DAY_S, rel=0.05)
