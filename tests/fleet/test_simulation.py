"""The simulated fleet: it agrees with queueing formulas where they apply, and follows the rules of `serve`."""

from dataclasses import replace

import pytest

from pplex.fleet.demand import Arrival, Demand
from pplex.fleet.erlang import erlang_b, erlang_c
from pplex.fleet.rules import Balance, Rules, Scaling
from pplex.fleet.simulation import replay, simulate
from pplex.fleet.tally import Outcome

FOREVER_S = 1e9
PURE = Rules(1, queue=10**6, queue_s=FOREVER_S, priming_s=0.0, mtbf_s=None)  # nothing that a formula does not know
LENGTH_S = 100.0


def fixed(replicas: int, slots: int) -> Scaling:
    return Scaling(replicas, replicas, float(slots))


def run(load: float, replicas: int, rules: Rules, clients: int = 12_000, seed: int = 0) -> Outcome:
    demand = Demand(load / LENGTH_S, LENGTH_S)
    return simulate(demand, rules, fixed(replicas, rules.slots), clients / demand.arrivals_per_s, seed)


def near(outcome: Outcome, share: float) -> bool:
    """Within three times the 95 % interval: the test shall fail only if the model is wrong."""
    low, high = outcome.interval
    return abs(outcome.waiting - share) < 1.5 * (high - low) + 0.002


@pytest.mark.parametrize("slots, load", [(10, 7.0), (4, 2.0), (32, 27.0)])
def test_one_replica_with_an_endless_queue_is_erlang_c(slots: int, load: float) -> None:
    outcome = run(load, 1, replace(PURE, slots=slots))
    assert near(outcome, erlang_c(slots, load))
    assert outcome.asked == outcome.at_once + outcome.waited


@pytest.mark.parametrize("balance", ["least", "random"])
@pytest.mark.parametrize("replicas, slots, load", [(3, 4, 9.0), (8, 2, 12.0), (1, 5, 6.0)])
def test_replicas_without_queues_are_one_pool_and_erlang_b(
    replicas: int, slots: int, load: float, balance: Balance
) -> None:
    """Each full replica answers 503, so the balancer tries all: no slot stays free while a client is refused."""
    outcome = run(load, replicas, replace(PURE, slots=slots, queue=0, balance=balance))
    assert near(outcome, erlang_b(replicas * slots, load))
    assert outcome.refused > 0 and outcome.waited == outcome.timed_out == 0


@pytest.mark.parametrize("slots, queue, load", [(6, 3, 6.0), (3, 8, 3.5)])
def test_a_full_queue_refuses_as_the_formula_for_finite_queues_says(slots: int, queue: int, load: float) -> None:
    """M/M/c/K: the states are a birth and death process, solved here step by step."""
    weights = [1.0]
    for clients in range(1, slots + queue + 1):
        weights.append(weights[-1] * load / min(clients, slots))
    outcome = run(load, 1, replace(PURE, slots=slots, queue=queue))
    assert near(outcome, sum(weights[slots:]) / sum(weights))
    assert outcome.refused / outcome.asked == pytest.approx(weights[-1] / sum(weights), abs=0.02)


def test_priming_holds_a_slot() -> None:
    """It adds to the load: Erlang B holds for any distribution of lengths."""
    outcome = run(8.0, 3, replace(PURE, slots=4, queue=0, priming_s=25.0))
    assert near(outcome, erlang_b(12, 8.0 * 1.25))
    assert outcome.used == pytest.approx(8 * (1 - outcome.waiting) / 12, rel=0.05)


def test_lost_connections_keep_their_slots() -> None:
    outcome = run(6.0, 3, replace(PURE, slots=4, queue=0, lost=0.5, resume_s=60.0))
    assert near(outcome, erlang_b(12, 6.0 * 1.3))
    assert outcome.talk_s == pytest.approx(LENGTH_S * outcome.at_once, rel=0.05), "nobody talks in a kept slot"


def test_a_client_that_was_lost_does_not_come_back_when_its_replica_fails() -> None:
    rules = replace(PURE, slots=1, lost=0.999999, resume_s=50.0)
    outcome = replay([Arrival(0.0, 5.0)], rules, fixed(1, 1), 100.0, failures=[(20.0, 0)])
    assert (outcome.asked, outcome.cut["failure"], outcome.failures) == (1, 0, 1)


def test_with_a_queue_each_fewer_clients_wait_than_in_one_queue() -> None:
    """A slot that becomes free while others queue elsewhere goes to the next newcomer."""
    outcome = run(42.0, 12, replace(PURE, slots=4))
    assert erlang_b(48, 42.0) < outcome.waiting < erlang_c(48, 42.0)


def test_random_balancing_lets_clients_wait_beside_free_slots() -> None:
    rules = replace(PURE, slots=4, queue=16)
    assert run(30.0, 12, replace(rules, balance="random")).waiting > 5 * run(30.0, 12, rules).waiting


def test_clients_leave_the_queue_after_its_limit() -> None:
    outcome = run(12.0, 2, replace(PURE, slots=5, queue=20, queue_s=30.0))
    assert outcome.timed_out > 100
    assert outcome.wait_p95_s is not None and outcome.wait_p95_s <= 30.0


@pytest.mark.parametrize("mtbf_s", [1_000.0, 4_000.0])
def test_failures_cut_the_share_that_the_formula_expects(mtbf_s: float) -> None:
    outcome = run(30.0, 10, replace(PURE, slots=6, mtbf_s=mtbf_s, start_s=10.0))
    expected = LENGTH_S / (LENGTH_S + mtbf_s)
    assert outcome.failures > 50 and outcome.cut["drain"] == 0
    assert outcome.cut["failure"] / outcome.conversations == pytest.approx(expected, rel=0.4)


def test_one_failure_cuts_the_clients_of_that_replica_and_no_others() -> None:
    arrivals = [Arrival(float(i), 50.0) for i in range(6)]
    outcome = replay(arrivals, replace(PURE, slots=3, return_s=5.0), fixed(2, 3), 200.0, failures=[(10.0, 0)])
    assert outcome.failures == 1 and outcome.cut["failure"] == 3
    assert (outcome.asked, outcome.at_once) == (9, 6), "three come back"
    assert outcome.waited == 3 and outcome.talk_s == pytest.approx(6 * 50.0), "and say the rest"


def test_a_client_in_the_queue_of_a_failed_replica_is_sent_away_and_comes_back() -> None:
    arrivals = [Arrival(0.0, 50.0), Arrival(1.0, 50.0), Arrival(2.0, 5.0)]
    outcome = replay(arrivals, replace(PURE, slots=1, return_s=1.0), fixed(2, 1), 300.0, failures=[(10.0, 0)])
    assert outcome.sent_away == 1 and outcome.cut["failure"] == 1
    assert outcome.talk_s == pytest.approx(105.0)


@pytest.mark.parametrize("start_s, at_once", [(5.0, 3), (60.0, 2)])
def test_a_replacement_takes_clients_when_it_has_started(start_s: float, at_once: int) -> None:
    arrivals = [Arrival(0.0, 5.0), Arrival(0.5, 5.0), Arrival(30.0, 5.0)]
    rules = replace(PURE, slots=1, queue=0, start_s=start_s)
    outcome = replay(arrivals, rules, fixed(2, 1), 100.0, failures=[(10.0, 0), (11.0, 1)])
    assert outcome.at_once == at_once and outcome.refused == 3 - at_once
    assert outcome.replicas == pytest.approx((10 + 11 + 90 + 89) / 100), "a replica is paid from its start"


@pytest.mark.parametrize("drain_s, cuts", [(1e6, False), (10.0, True)])
def test_scaling_down_cuts_only_conversations_that_outlast_the_drain(drain_s: float, cuts: bool) -> None:
    demand = Demand(0.2, LENGTH_S, quiet=0.2)
    outcome = simulate(demand, replace(PURE, slots=4, drain_s=drain_s), Scaling(2, 8, 2.5), 43_200, seed=0)
    assert outcome.drains > 0 and outcome.failures == 0
    assert (outcome.cut["drain"] > 0) is cuts
    assert 2 < outcome.replicas < 7, "paid only while the load needs them"


def test_slow_starts_let_more_clients_wait() -> None:
    demand, rules = Demand(0.2, LENGTH_S, quiet=0.1), replace(PURE, slots=4, drain_s=1e6)
    fast, slow = (
        simulate(demand, replace(rules, start_s=start_s), Scaling(1, 8, 3.0), 43_200, seed=0)
        for start_s in (1.0, 900.0)
    )
    assert slow.waiting > 1.5 * fast.waiting


def test_the_same_seed_gives_the_same_figures_and_another_seed_others() -> None:
    rules = replace(PURE, slots=4, balance="random", mtbf_s=5_000.0)
    first, again, other = (run(9.0, 3, rules, clients=2_000, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_costs_follow_from_the_price_and_the_minutes_of_talk() -> None:
    outcome = run(6.0, 3, replace(PURE, slots=4), clients=5_000)
    assert outcome.replicas == pytest.approx(3.0)
    assert outcome.cost_per_minute(1.20) == pytest.approx(3 * 1.20 / (60 * 6.0), rel=0.1)


def test_a_draining_replica_is_paid_until_its_last_client_has_left() -> None:
    demand, scaling = Demand(0.02, 1000.0, quiet=0.2), Scaling(2, 8, 2.5)
    patient, hasty = (
        simulate(demand, replace(PURE, slots=4, drain_s=drain_s), scaling, 86_400, 0) for drain_s in (1e6, 1)
    )
    assert patient.drains > 10 and hasty.drains > 10
    assert 0.1 < patient.replicas - hasty.replicas < 3
    assert patient.cut["drain"] == 0 < hasty.cut["drain"]
