"""Two agents on the same samples, paired by name, with a significance test. Called by `fdb.report`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pplex.fdb.metrics import METRICS, YES_OR_NO, Metric
from pplex.fdb.score import Score
from pplex.fdb.significance import mcnemar, sign_flips

TESTS = "McNemar's exact test for TOR and classes, a permutation test of the paired differences for the others"


@dataclass(frozen=True)
class Paired:
    """One measure of both: means over the `count` samples that both have, and p of the difference."""

    collection: str
    metric: Metric
    first: float
    second: float
    count: int
    p: float


def paired(first: Score, second: Score) -> Iterator[Paired]:
    """Every measure that both have for at least one sample, in the order of the first."""
    for collection, task in first.collections.items():
        for metric in METRICS[task]:
            a, b = (score.values(collection, metric.key) for score in (first, second))
            both = [(a[name], b[name]) for name in a if name in b]
            if both:
                means = [float(mean) for mean in np.mean(both, axis=0)]
                yield Paired(collection, metric, means[0], means[1], len(both), _p(metric, both))


def _p(metric: Metric, pairs: list[tuple[float, float]]) -> float:
    if metric.key in YES_OR_NO:
        return mcnemar(sum(one > other for one, other in pairs), sum(one < other for one, other in pairs))
    return sign_flips([one - other for one, other in pairs])
