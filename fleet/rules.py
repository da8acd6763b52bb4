"""The rules that a simulated fleet follows. Called by `cli.fleet`, `fleet.plan` and the simulation."""

from dataclasses import dataclass
from typing import Literal

from pplex.server.limits import Limits

Balance = Literal["least", "random"]

LIMITS = Limits()
# Assumptions, not measurements: plans say so, and each has an option.
PRIMING_S, START_S, MTBF_H = 1.0, 120.0, 1000.0


@dataclass(frozen=True)
class Rules:
    """A replica's slots and the options of its `serve`; around it the balancer, the starts and the failures.

    balance: which replica gets a newcomer. least: the one with the fewest clients, slots and queue together. random: any.
    Both try the other replicas after a 503. mtbf_s: mean time until a replica fails; None: it never does. lost: the share of
    conversations that end without a goodbye, so that the server keeps the slot for `resume_s`.
    """

    slots: int
    queue: int = LIMITS.queue
    queue_s: float = LIMITS.queue_s
    drain_s: float = LIMITS.drain_s
    resume_s: float = LIMITS.resume_s
    lost: float = 0.0
    priming_s: float = PRIMING_S
    start_s: float = START_S  # from the decision to start a replica until it takes clients
    mtbf_s: float | None = 3600 * MTBF_H
    balance: Balance = "least"
    return_s: float = 10.0  # a client that was cut opens anew within this time

    @property
    def overhead_s(self) -> float:
        """How much longer than its conversation a client holds a slot, on average."""
        return self.priming_s + self.lost * self.resume_s


@dataclass(frozen=True)
class Scaling:
    """The autoscaler: as many replicas as bring each to `target` clients, from `fewest` to `most`.

    check_s: time between its looks. down_s: fewer must have been enough for this long before it drains a replica.
    """

    fewest: int
    most: int
    target: float
    check_s: float = 15.0
    down_s: float = 300.0

    @property
    def is_fixed(self) -> bool:
        """Whether only failed replicas are replaced."""
        return self.fewest == self.most

    def wanted(self, clients: int) -> int:
        """Replicas for so many clients."""
        return min(self.most, max(self.fewest, -int(-clients // self.target)))
