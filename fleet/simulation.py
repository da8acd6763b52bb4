"""A discrete-event simulation of a fleet: clients, the server's admission, failures, drains and an autoscaler.

Called by `fleet.plan` and `benchmarks/fleet_run.py`. SimPy keeps the clock and the events.

    arrival -> a replica's slot -> priming -> conversation -> end
            -> a replica's queue -> slot, or gives up after queue_s
            -> all refuse (503): gives up
    failure or drain: cut, and within return_s a new request, for the rest of the conversation
"""

import random
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import simpy

from pplex.fleet.client import Client, World
from pplex.fleet.demand import Arrival, Demand
from pplex.fleet.rules import Rules, Scaling
from pplex.fleet.scaler import Scaler
from pplex.fleet.tally import Outcome, Tally

WARM_UP = 3.0  # times the mean length; the fleet begins with the mean number of conversations


def simulate(demand: Demand, rules: Rules, scaling: Scaling, seconds: float, seed: int) -> Outcome:
    """Figures of `seconds`, after a warm-up. The same seed gives the same clients for any rules and number of replicas."""
    clients, filling = random.Random(seed), random.Random(~seed)
    warm_s = WARM_UP * demand.seconds
    now = demand.rate_per_s(0) * demand.seconds
    open_now = [Arrival(0.0, filling.expovariate(1 / demand.seconds)) for _ in range(round(now))]
    run = _Run(rules, scaling, Tally(warm_s, warm_s + seconds), seed)
    run.begin(scaling.wanted(len(open_now)), open_now, demand.arrivals(clients))
    return run.outcome()


def replay(
    arrivals: Sequence[Arrival],
    rules: Rules,
    scaling: Scaling,
    seconds: float,
    failures: Sequence[tuple[float, int]] = (),
    seed: int = 0,
) -> Outcome:
    """Figures of given arrivals from the first moment on. failures: when, and which of the first replicas by its number.

    seed: of the balancer's choices and of the clients' pauses.
    """
    run = _Run(rules, scaling, Tally(0.0, seconds), seed)
    run.begin(scaling.fewest, (), arrivals, failures)
    return run.outcome()


class _Run:
    """One simulated time."""

    def __init__(self, rules: Rules, scaling: Scaling, tally: Tally, seed: int):
        self._world = World(simpy.Environment(), rules, tally, random.Random(seed + 1))
        self._scaler = Scaler(self._world, scaling, random.Random(seed + 2))

    def begin(
        self,
        replicas: int,
        open_now: Iterable[Arrival],
        arrivals: Iterable[Arrival],
        failures: Sequence[tuple[float, int]] = (),
    ) -> None:
        self._scaler.run(replicas)
        for at_s, index in failures:
            self._world.env.process(self._fail(at_s, index))
        for one in open_now:
            Client(self._world, one.seconds)
        self._world.env.process(self._arrive(arrivals))

    def outcome(self) -> Outcome:
        """Run to the end of the counted time."""
        self._world.env.run(until=self._world.tally.until_s)
        self._scaler.settle()
        return self._world.tally.outcome(self._world.rules.slots)

    def _arrive(self, arrivals: Iterable[Arrival]) -> Generator[simpy.Event, Any, None]:
        env = self._world.env
        for one in arrivals:
            yield env.timeout(one.at_s - env.now)
            Client(self._world, one.seconds)

    def _fail(self, at_s: float, index: int) -> Generator[simpy.Event, Any, None]:
        replica = self._world.taking[index]
        yield self._world.env.timeout(at_s)
        self._scaler.fail(replica)
