"""Counts what happens to simulated clients, and makes figures of it. Called by `fleet.client` and `fleet.simulation`."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BATCHES = 20
# Half of a 95 % interval of a mean of 20 batches, in standard errors: Student's t with 19 degrees of freedom.
T_95 = 2.093


@dataclass(frozen=True)
class Outcome:
    """Figures of a simulated time.

    asked: requests for a slot: newcomers, and clients that were cut and come back. Of these, `at_once` got a slot at once,
    `waited` got one later, `timed_out` gave up in the queue, `sent_away` waited where a replica failed or drained, and
    `refused` found every queue full. waiting: the share of requests that did not get a slot at once, with its 95 % interval.
    cut: conversations that a replica's end cut, by cause (failure, drain). used: share of the slots in use. replicas: on
    average, running and starting. talk_s: seconds of conversation.
    """

    asked: int
    at_once: int
    waited: int
    timed_out: int
    sent_away: int
    refused: int
    waiting: float
    interval: tuple[float, float]
    wait_p50_s: float | None
    wait_p95_s: float | None
    cut: dict[str, int]
    failures: int
    drains: int
    replicas: float
    used: float
    talk_s: float
    seconds: float

    @property
    def conversations(self) -> int:
        """Requests that got a slot."""
        return self.at_once + self.waited

    def cost_per_minute(self, price_per_hour: float) -> float:
        """Of a minute of conversation, at the price of a replica for an hour; inf if nobody talked."""
        hours = self.replicas * self.seconds / 3600
        return price_per_hour * hours / (self.talk_s / 60) if self.talk_s else math.inf

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tally:
    """Counts from `from_s` to `until_s` of simulated time; what happens before only fills the fleet."""

    def __init__(self, from_s: float, until_s: float):
        self.from_s, self.until_s = from_s, until_s
        self._requests = Counter[str]()
        self._late, self._asked = np.zeros(BATCHES), np.zeros(BATCHES)  # [batch]
        self._waits_s = list[float]()
        self._cuts, self._events = Counter[str](), Counter[str]()
        self._talk_s = self._replica_s = 0.0

    def got_slot(self, asked_s: float, now_s: float) -> None:
        waited = now_s > asked_s
        if self._request(asked_s, "waited" if waited else "at_once") and waited:
            self._waits_s.append(now_s - asked_s)

    def timed_out(self, asked_s: float) -> None:
        self._request(asked_s, "timed_out")

    def sent_away(self, asked_s: float) -> None:
        self._request(asked_s, "sent_away")

    def refused(self, asked_s: float) -> None:
        self._request(asked_s, "refused")

    def talked(self, seconds: float, now_s: float) -> None:
        """A conversation has ended; count the part of it that is in the counted time."""
        self._talk_s += self._overlap_s(now_s - seconds, now_s)

    def cut(self, cause: str, now_s: float) -> None:
        self._cuts[cause] += self._counts(now_s)

    def ended(self, cause: str, now_s: float) -> None:
        """A replica failed or began to drain."""
        self._events[cause] += self._counts(now_s)

    def billed(self, since_s: float, now_s: float) -> None:
        """A replica existed in this time."""
        self._replica_s += self._overlap_s(since_s, now_s)

    def outcome(self, slots: int) -> Outcome:
        """The figures. `slots`: of one replica."""
        requests, waits_s, seconds = self._requests, self._waits_s, self.until_s - self.from_s
        share = float(self._late.sum() / max(1, self._asked.sum()))
        return Outcome(
            **{name: requests[name] for name in ("at_once", "waited", "timed_out", "sent_away", "refused")},
            asked=sum(requests.values()),
            waiting=share,
            interval=self._interval(share),
            wait_p50_s=float(np.percentile(waits_s, 50)) if waits_s else None,
            wait_p95_s=float(np.percentile(waits_s, 95)) if waits_s else None,
            cut={cause: self._cuts[cause] for cause in ("failure", "drain")},
            failures=self._events["failure"],
            drains=self._events["drain"],
            replicas=self._replica_s / seconds,
            used=self._talk_s / (self._replica_s * slots) if self._replica_s else 0.0,
            talk_s=self._talk_s,
            seconds=seconds,
        )

    def _request(self, asked_s: float, what: str) -> bool:
        """Count a request in the batch of its time; False if it is outside of the counted time."""
        if not self._counts(asked_s):
            return False
        batch = int(BATCHES * (asked_s - self.from_s) / (self.until_s - self.from_s))
        self._requests[what] += 1
        self._asked[batch] += 1
        self._late[batch] += what != "at_once"
        return True

    def _interval(self, share: float) -> tuple[float, float]:
        """From the spread between batches: requests close in time meet the same full fleet, so they are not independent."""
        parts = self._late / np.maximum(1, self._asked)
        half = T_95 * float(parts.std(ddof=1)) / math.sqrt(BATCHES)
        return max(0.0, share - half), min(1.0, share + half)

    def _counts(self, now_s: float) -> bool:
        return self.from_s <= now_s < self.until_s

    def _overlap_s(self, since_s: float, now_s: float) -> float:
        return max(0.0, min(now_s, self.until_s) - max(since_s, self.from_s))
