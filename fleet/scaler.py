"""Starts, fails and drains simulated replicas. Called by `fleet.simulation`."""

import random
from collections import deque
from collections.abc import Generator
from functools import partial
from typing import Any

import simpy

from pplex.fleet.client import World
from pplex.fleet.replica import Replica
from pplex.fleet.rules import Scaling
from pplex.server.metrics import Metrics

Steps = Generator[simpy.Event, Any, None]
NEVER_S = 1e12


class Scaler:
    """The autoscaler and the machines: a replica is paid from the decision to start it until it is gone."""

    def __init__(self, world: World, scaling: Scaling, numbers: random.Random):
        self._world, self._scaling, self._numbers = world, scaling, numbers
        self._starting = 0
        self._since_s: dict[Replica, float] = {}  # all replicas that take clients or drain
        self._metrics = Metrics()  # nobody reads it, so one is enough

    def run(self, replicas: int) -> None:
        """Begin with `replicas` that are ready. An autoscaler looks at them regularly from then on."""
        for _ in range(replicas):
            self._ready(self._world.env.now)
        if not self._scaling.is_fixed:
            self._world.env.process(self._look())

    def settle(self) -> None:
        """Count the replicas that still exist at the end."""
        for since_s in self._since_s.values():
            self._world.tally.billed(since_s, self._world.env.now)

    def fail(self, replica: Replica) -> None:
        """End a replica at once: its clients are cut. One that is already gone is left alone."""
        if replica in self._since_s:
            self._world.tally.ended("failure", self._world.env.now)
            self._end(replica, "failure")
            if self._scaling.is_fixed:
                self._world.env.process(self._start())

    def _ready(self, since_s: float) -> None:
        world = self._world
        replica = Replica(world.env, world.rules.slots, world.rules.queue, self._metrics)
        world.taking.append(replica)
        self._since_s[replica] = since_s
        if world.rules.mtbf_s is not None:
            lives_s = self._numbers.expovariate(1 / world.rules.mtbf_s)
            world.env.process(self._later(min(lives_s, NEVER_S), partial(self.fail, replica)))

    def _look(self) -> Steps:
        """Compare the replicas with the wanted number; drain only what was too many for `down_s`."""
        world, scaling = self._world, self._scaling
        recent = deque[int](maxlen=max(1, round(scaling.down_s / scaling.check_s)))
        while True:
            recent.append(scaling.wanted(sum(replica.load for replica in world.taking)))
            have = len(world.taking) + self._starting
            for _ in range(recent[-1] - have):
                world.env.process(self._start())
            if len(recent) == recent.maxlen and have > max(recent):
                for replica in sorted(world.taking, key=lambda one: one.load)[: have - max(recent)]:
                    self._drain(replica)
            yield world.env.timeout(scaling.check_s)

    def _start(self) -> Steps:
        began_s = self._world.env.now
        self._starting += 1
        yield self._world.env.timeout(self._world.rules.start_s)
        self._starting -= 1
        self._ready(began_s)

    def _drain(self, replica: Replica) -> None:
        """As after SIGTERM: who has not begun is sent away, and conversations may finish within `drain_s`."""
        world = self._world
        world.tally.ended("drain", world.env.now)
        world.taking.remove(replica)
        for guest in list(replica.guests.values()):
            if guest.begins_s is None or guest.begins_s > world.env.now:
                guest.dismiss("drain")
        world.env.process(self._finish(replica))

    def _finish(self, replica: Replica) -> Steps:
        yield replica.emptied() | self._world.env.timeout(self._world.rules.drain_s)
        if replica in self._since_s:
            self._end(replica, "drain")

    def _end(self, replica: Replica, cause: str) -> None:
        self._world.tally.billed(self._since_s.pop(replica), self._world.env.now)
        if replica in self._world.taking:
            self._world.taking.remove(replica)
        for guest in list(replica.guests.values()):
            guest.dismiss(cause)

    def _later(self, seconds: float, what: partial[None]) -> Steps:
        yield self._world.env.timeout(seconds)
        what()
