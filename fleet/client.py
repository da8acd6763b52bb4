"""A simulated client: it looks for a slot, waits, talks, and comes back if it was cut. Called by `fleet.simulation`."""

import random
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import simpy

from pplex.fleet.replica import Replica, find_place
from pplex.fleet.rules import Rules
from pplex.fleet.tally import Tally
from pplex.server.admission import Ticket


@dataclass
class World:
    """What all clients share. `taking`: the replicas that take newcomers."""

    env: simpy.Environment
    rules: Rules
    tally: Tally
    numbers: random.Random
    taking: list[Replica] = field(default_factory=list)


class Client:
    """One client, from its arrival until it has said all or gives up. It gives up if all refuse, or after `queue_s`."""

    def __init__(self, world: World, seconds: float):
        self.begins_s: float | None = None
        self._world, self._left_s = world, seconds
        self._process = world.env.process(self._live())

    def dismiss(self, cause: str) -> None:
        """End its visit to a replica: it fails, or drains."""
        self._process.interrupt(cause)

    def _live(self) -> Generator[simpy.Event, Any, None]:
        world = self._world
        while True:
            place = find_place(world.taking, self, world.rules.balance, world.numbers)
            if place is None:
                world.tally.refused(world.env.now)
                return
            if (yield from self._visit(*place)):
                return
            yield world.env.timeout(world.numbers.uniform(0, world.rules.return_s))

    def _visit(self, replica: Replica, ticket: Ticket) -> Generator[simpy.Event, Any, bool]:
        """From a ticket to its end. Returns whether the client is finished; otherwise it was cut."""
        env, tally, asked_s = self._world.env, self._world.tally, self._world.env.now
        self.begins_s = None
        try:
            if not ticket.granted:
                yield replica.turn(ticket) | env.timeout(self._world.rules.queue_s)
                if not ticket.granted:
                    tally.timed_out(asked_s)
                    return True
            tally.got_slot(asked_s, env.now)
            self.begins_s = env.now + self._world.rules.priming_s
            yield env.timeout(self.begins_s + self._left_s - env.now)
            tally.talked(self._left_s, env.now)
            yield from self._keep_slot()
            return True
        except simpy.Interrupt as end:
            self._cut(asked_s, str(end.cause))
            return False
        finally:
            replica.leave(ticket)

    def _keep_slot(self) -> Generator[simpy.Event, Any, None]:
        """After a lost connection the slot is kept for a client that does not come back, unless its replica ends."""
        rules = self._world.rules
        if rules.lost and self._world.numbers.random() < rules.lost:
            with suppress(simpy.Interrupt):
                yield self._world.env.timeout(rules.resume_s)

    def _cut(self, asked_s: float, cause: str) -> None:
        """Count a visit that ended from outside, and what is left to say."""
        now_s, tally = self._world.env.now, self._world.tally
        if self.begins_s is None:
            tally.sent_away(asked_s)
        elif now_s >= self.begins_s:
            said_s = now_s - self.begins_s
            self._left_s = max(0.0, self._left_s - said_s)
            tally.talked(said_s, now_s)
            tally.cut(cause, now_s)
