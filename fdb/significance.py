"""Whether two agents differ, from pairs of the same samples: exact tests, without assumptions on how values are spread.

Called by `fdb.comparison`.
"""

import math
from collections.abc import Sequence

import numpy as np

from pplex.runtime.arrays import Floats

EXACT = 16  # differences for which all signs are tried; with more, DRAWN of them
DRAWN = 20_000


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: p, from the numbers of pairs in which only one of both took over."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(count, i) for i in range(fewer + 1)) / 2**count)


def sign_flips(differences: Sequence[float]) -> float:
    """The permutation test of paired differences, two-sided: p, the share of signs that give as large a mean.

    With more than EXACT differences other than 0, the signs are drawn with a fixed seed, so equal data give an equal p.
    """
    some = np.array([one for one in differences if one], np.float64)
    if not len(some):
        return 1.0
    observed = abs(some.sum()) * (1 - 1e-12)  # sums in another order may round differently
    if len(some) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(some))[:, None] >> np.arange(len(some)) & 1)  # [2^n, n]
        return float(np.mean(np.abs(signs @ some) >= observed))
    larger = sum(int((np.abs(block @ some) >= observed).sum()) for block in _drawn_signs(len(some)))
    return (larger + 1) / (DRAWN + 1)


def _drawn_signs(count: int, block: int = 1000) -> "list[Floats]":
    random = np.random.default_rng(0)
    return [random.choice((-1.0, 1.0), (block, count)) for _ in range(DRAWN // block)]
