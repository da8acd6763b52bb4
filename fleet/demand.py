"""The load of a fleet: how often clients arrive, and how long they talk. Called by `cli.fleet` and `fleet.plan`."""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pplex.runtime.errors import ConfigError

DAY_S = 86400.0
AGREE = 0.05  # two numbers that differ by less describe the same load: users round
_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}


@dataclass(frozen=True)
class Arrival:
    """A client that comes at `at_s` and wants to talk for `seconds`."""

    at_s: float
    seconds: float


@dataclass(frozen=True)
class Demand:
    """Random arrivals, and conversations of exponentially distributed lengths.

    arrivals_per_s: at the busiest time of a day. seconds: mean length. quiet: the arrivals at the quietest time, as a share
    of those at the busiest; in between the rate is a cosine of one day.
    """

    arrivals_per_s: float
    seconds: float
    quiet: float = 1.0

    @property
    def conversations(self) -> float:
        """Open at once, on average, at the busiest time: Little's law."""
        return self.arrivals_per_s * self.seconds

    def rate_per_s(self, at_s: float) -> float:
        """Arrivals a second. The day begins at its quietest time."""
        swing = (1 - math.cos(2 * math.pi * at_s / DAY_S)) / 2
        return self.arrivals_per_s * (self.quiet + (1 - self.quiet) * swing)

    def arrivals(self, numbers: random.Random) -> Iterator[Arrival]:
        """An endless stream of clients: those of the busiest rate, thinned to the rate of their time."""
        at_s = 0.0
        while True:
            at_s += numbers.expovariate(self.arrivals_per_s)
            seconds, kept = numbers.expovariate(1 / self.seconds), numbers.random()
            if self.quiet == 1 or kept * self.arrivals_per_s < self.rate_per_s(at_s):
                yield Arrival(at_s, seconds)


def find_demand(
    conversations: float | None, minutes: float | None, arrivals_per_s: float | None, quiet: float = 1.0
) -> tuple[Demand, tuple[str, ...]]:
    """The demand that two or three figures describe, and notes for the user.

    If three figures contradict each other, the larger load counts, and a note says so. Raises ConfigError for fewer than
    two.
    """
    seconds = None if minutes is None else 60 * minutes
    match conversations, seconds, arrivals_per_s:
        case None, float(), float():
            return Demand(arrivals_per_s, seconds, quiet), ()
        case float(), None, float():
            return Demand(arrivals_per_s, conversations / arrivals_per_s, quiet), ()
        case float(), float(), None:
            return Demand(conversations / seconds, seconds, quiet), ()
        case float(), float(), float():
            larger = Demand(max(arrivals_per_s, conversations / seconds), seconds, quiet)
            return larger, _contradiction(conversations, seconds, arrivals_per_s)
    raise ConfigError(
        "A fleet needs two of these three: --arrivals 2/s, --minutes 6 (mean length), --conversations 720 (at once). "
        "Each follows from the other two."
    )


def _contradiction(conversations: float, seconds: float, arrivals_per_s: float) -> tuple[str, ...]:
    """A note if the conversations at once are not the arrivals times the length, which holds for every queue (Little)."""
    at_once = arrivals_per_s * seconds
    if abs(at_once - conversations) <= AGREE * max(at_once, conversations):
        return ()
    larger = max(at_once, conversations)
    return (
        f"--conversations, --minutes and --arrivals contradict each other: {rate_text(arrivals_per_s)} of {seconds / 60:g} "
        f"min each are {at_once:,.0f} conversations at once, not {conversations:,.0f}. This plan is for {larger:,.0f}, the "
        "larger number. Leave one of the three out.",
    )


def parse_rate(text: str) -> float:
    """Arrivals a second from 2/s, 120/min or 7200/h. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*([a-z]+)", text.strip(), re.ASCII | re.IGNORECASE)
    unit = match and _SECONDS.get(match[2].lower())
    rate = float(match[1]) / unit if match and unit else 0.0
    if not 0 < rate < math.inf:
        raise ConfigError(
            f"{text!r} is not a rate of arrivals. Give a number above 0 and a time: 2/s, 120/min or 7200/h."
        )
    return rate


def parse_share(text: str) -> float:
    """A probability between 0 and 1 from 1% or 0.01. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip(), re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise ConfigError(f"{text!r} is not a probability. Give one between 0 and 1, such as 1% or 0.01.")
    return share


def rate_text(per_s: float) -> str:
    """As in 2/s, or 30/h if it is less than one a minute."""
    if per_s >= 1 / 60:
        return f"{per_s:.3g}/s" if per_s >= 1 else f"{60 * per_s:.3g}/min"
    return f"{3600 * per_s:.3g}/h"
