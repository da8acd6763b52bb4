"""A simulated replica, and the balancer in front of all of them. Called by `fleet.client` and `fleet.scaler`."""

import random
from collections.abc import Sequence
from typing import Protocol

import simpy

from pplex.fleet.rules import Balance
from pplex.server.admission import Admission, Ticket
from pplex.server.metrics import Metrics
from pplex.server.request import RequestError


class Guest(Protocol):
    """A client in a replica. `begins_s`: when its handshake is sent; None in the queue."""

    begins_s: float | None

    def dismiss(self, cause: str) -> None:
        """End its visit from outside."""


class Replica:
    """One server process: the real server's admission, and the clients that hold its tickets."""

    def __init__(self, env: simpy.Environment, slots: int, queue: int, metrics: Metrics):
        self.guests: dict[Ticket, Guest] = {}
        self.load = (
            0  # clients in slots and in the queue; an attribute, because the balancer reads it for every newcomer
        )
        self._env, self._admission = env, Admission(slots, queue, metrics)
        self._turns: dict[Ticket, simpy.Event] = {}  # of the clients in the queue, in its order
        self._emptied: simpy.Event | None = None  # while it drains

    def enter(self, guest: Guest) -> Ticket:
        """Take a slot or a place in the queue. Raises RequestError, a 503, if both are full."""
        ticket = self._admission.enter()
        self.guests[ticket] = guest
        self.load += 1
        return ticket

    def turn(self, ticket: Ticket) -> simpy.Event:
        """What happens when a client in the queue gets its slot."""
        self._turns[ticket] = event = self._env.event()
        return event

    def emptied(self) -> simpy.Event:
        """What happens when the last client has left."""
        self._emptied = event = self._env.event()
        if not self.guests:
            event.succeed()
        return event

    def leave(self, ticket: Ticket) -> None:
        """Free the slot, or the place in the queue."""
        del self.guests[ticket]
        self.load -= 1
        self._turns.pop(ticket, None)
        self._admission.release(ticket)
        for following, event in list(self._turns.items()):
            if not following.granted:
                break
            del self._turns[following]
            event.succeed()
        if self._emptied is not None and not self.guests:
            self._emptied.succeed()


def find_place(
    replicas: Sequence[Replica], guest: Guest, balance: Balance, numbers: random.Random
) -> tuple[Replica, Ticket] | None:
    """A replica that takes the client, and its ticket; None if all refuse."""
    for replica in _in_turn(replicas, balance, numbers):
        try:
            return replica, replica.enter(guest)
        except RequestError:
            continue
    return None


def _in_turn(replicas: Sequence[Replica], balance: Balance, numbers: random.Random) -> Sequence[Replica]:
    """The replicas that a balancer tries. If the one with the fewest clients is full, so are all others."""
    if balance == "random" or not replicas:
        return numbers.sample(replicas, len(replicas))
    return [min(replicas, key=_load)]


def _load(replica: Replica) -> int:
    return replica.load
