"""Erlang's formulas: how likely a newcomer finds every slot taken. Called by `fleet.plan`.

Both assume random arrivals (Poisson) at a constant rate, and one pool of slots. The load is the mean number of conversations
at once if nobody had to wait: arrivals a second times the seconds that a conversation holds its slot.

Source: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
exchanges" (1917); here in the form 1/B = sum over k of slots! / (slots - k)! / load^k.
"""

import math
from collections.abc import Callable

import numpy as np


def erlang_b(slots: int, load: float) -> float:
    """The share of clients that is refused if nobody may wait. Holds for every distribution of lengths."""
    if load == 0:
        return 0.0 if slots else 1.0
    with np.errstate(over="ignore"):  # with far more slots than load, the sum is inf and the share 0
        terms = np.cumprod((slots - np.arange(slots)) / load)  # [slots]
        return float(1 / (1 + terms.sum()))


def erlang_c(slots: int, load: float) -> float:
    """The share of clients that waits if all wait as long as it takes. For exponentially distributed lengths.

    1 if the load is not below the slots: then the queue grows without limit.
    """
    if load >= slots:
        return 1.0
    refused = erlang_b(slots, load)
    return refused / (1 - load / slots * (1 - refused))


def least(first: int, holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from `first` to `most` for which `holds`; None if there is none.

    `holds` must be true for all larger numbers too.
    """
    low, high = first - 1, first
    while high < most and not holds(high):
        low, high = high, min(most, high + max(1, 2 * (high - low)))
    if high >= most and not holds(most):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def replicas_needed(slots: int, load: float, probability: float) -> int:
    """Replicas of `slots` slots, as one pool, for which at most `probability` of the clients wait (Erlang C)."""
    first = max(1, math.ceil(load / slots))
    most = first + math.ceil(40 * math.sqrt(load) / slots) + 100  # 40 standard deviations above the mean
    found = least(first, lambda n: erlang_c(n * slots, load) <= probability, most)
    assert found is not None, "no probability above 0 needs so many slots"
    return found
