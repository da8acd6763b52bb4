"""Assigns a form to each group of matrices, so that the drift is least for the bytes: called by `engines.mixed_choice`.

Every group starts in its smallest form. An upgrade gives one group its next form, and costs bytes. The upgrades are sorted
by how much drift a byte of them saves. So each prefix of the list is the assignment with the least drift of all that take
no more bytes (Lagrange: within a group, only forms on the lower convex hull of drift over bytes are used). A longer prefix
contains the shorter one, so more bytes never drift more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import Forms, offered
from pplex.runtime.parameters import parameters
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import MIXED

Cost = tuple[float, float]  # drift of text and of audio, in nats
Costs = Mapping[str, Mapping[str, Mapping[str, Cost]]]  # graph -> group -> form -> cost


@dataclass(frozen=True)
class _Point:
    """A form of a group: its bytes, and its drift of both streams and of their weighted sum."""

    form: str
    nbytes: int
    cost: Cost
    weighted: float


@dataclass(frozen=True)
class _Upgrade:
    """A group's change from one form to the next on its hull."""

    graph: str
    group: str
    form: str
    saved: float  # weighted drift for each byte


@dataclass(frozen=True)
class Upgrades:
    """The smallest forms, and the upgrades from there in their order."""

    smallest: Forms
    steps: tuple[_Upgrade, ...]

    def forms(self, count: int) -> Forms:
        """The assignment after `count` upgrades."""
        found = {graph: dict(groups) for graph, groups in self.smallest.items()}
        for step in self.steps[:count]:
            found[step.graph][step.group] = step.form
        return found


def upgrades(config: ModelConfig, costs: Costs, compiled: bool, share: float = 0.5) -> Upgrades:
    """All upgrades for these costs. `share`: how much text counts, 0 to 1; audio counts the rest.

    A stream's drift is counted relative to that of the smallest forms. `compiled`: for engines.
    """
    smallest = smallest_forms(config, compiled)
    totals = predicted(costs, smallest)
    scale = [part / total if total else 0.0 for part, total in zip((share, 1 - share), totals, strict=True)]
    steps = [
        _Upgrade(graph, group, after.form, (before.weighted - after.weighted) / (after.nbytes - before.nbytes))
        for graph, group, points in _points(config, costs, compiled, scale)
        for before, after in _pairs(_hull(_improving(points)))
    ]
    return Upgrades(smallest, tuple(sorted(steps, key=lambda step: -step.saved)))  # stable: ties keep the graph's order


def smallest_forms(config: ModelConfig, compiled: bool) -> Forms:
    """The smallest form for every group."""
    table, first = parameters(config), next(iter(offered(compiled)))
    return {graph: {group.name: first for group in table[graph].groups} for graph in LANGUAGE_GRAPHS}


def predicted(costs: Costs, forms: Forms) -> Cost:
    """The drift of an assignment: the sum over its groups. It holds while the drift is small: see docs/precision.md."""
    found = [costs[graph][group][form] for graph, groups in forms.items() for group, form in groups.items()]
    return sum(text for text, _ in found), sum(audio for _, audio in found)


def _points(
    config: ModelConfig, costs: Costs, compiled: bool, scale: list[float]
) -> Iterator[tuple[str, str, list[_Point]]]:
    """The forms of each group, the smallest first."""
    for graph in LANGUAGE_GRAPHS:
        for group in parameters(config)[graph].groups:
            points = []
            for name, form in offered(compiled).items():
                cost = costs[graph][group.name][name]
                weighted = scale[0] * cost[0] + scale[1] * cost[1]
                points.append(_Point(name, group.nbytes(form, MIXED.activations), cost, weighted))
            yield graph, group.name, points


def _improving(points: list[_Point]) -> list[_Point]:
    """Each form that drifts less than the one kept before it: in sum, and not more in text or in audio."""
    kept = points[:1]
    for point in points[1:]:
        last = kept[-1]
        larger, better = point.nbytes > last.nbytes, point.weighted < last.weighted
        if larger and better and point.cost[0] <= last.cost[0] and point.cost[1] <= last.cost[1]:
            kept.append(point)
    return kept


def _hull(points: list[_Point]) -> list[_Point]:
    """Those on the lower convex hull: each upgrade saves less for a byte than the one before."""
    hull: list[_Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: _Point, b: _Point) -> float:
    return (b.weighted - a.weighted) / (b.nbytes - a.nbytes)


def _pairs(points: list[_Point]) -> Iterator[tuple[_Point, _Point]]:
    return pairwise(points)
