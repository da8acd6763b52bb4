"""Chooses the form of each matrix for a target's memory, or for a budget of drift: called by `export`.

What can be checked without a measurement is checked first: `Mixing.checked`. The costs of the forms come later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pplex.engines.assignment import Cost, Costs, Upgrades, predicted, smallest_forms, upgrades
from pplex.engines.choice import Target, conversations_text
from pplex.engines.plan import RESERVE_NBYTES, MemoryPlan
from pplex.engines.processor import ProcessorPlan
from pplex.measure.tables import readable
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import BuildError
from pplex.runtime.forms import Forms
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import FP32, MIXED

MIXED_PRECISION: Mapping[str, str] = {**FP32, **dict.fromkeys(LANGUAGE_GRAPHS, MIXED.name)}
_SHARES = tuple(i / 16 for i in range(17))  # of text, for a budget


@dataclass(frozen=True)
class Mixing:
    """What to choose for: a target, with `slots` conversations.

    limited: whether the target's memory is a limit. budget: the most drift of text and audio; the bundle is then the
    smallest within it. Without it, the drift is the least that fits.
    """

    config: ModelConfig
    target: Target
    slots: int
    limited: bool = True
    budget: Cost | None = None

    @property
    def compiled(self) -> bool:
        return self.target.gpu is not None or self.target.for_engines

    @property
    def smallest(self) -> Forms:
        return smallest_forms(self.config, self.compiled)

    def checked(self) -> "Mixing":
        """Itself. Raises GpuError if the GPU cannot run such a mix, BuildError if not even the smallest forms fit."""
        target = self.target
        if target.gpu is not None:
            target.gpu.check_precision(MIXED_PRECISION)
        needed = self._plan(self.smallest).needed_nbytes(self.slots)
        if self.limited and needed > target.memory_nbytes:
            options = (
                "Choose a smaller --capacity" + (", fewer --slots," if self.slots > 1 else "") + " or a larger target"
            )
            raise BuildError(
                f"No mix fits: {target.title} has {readable(target.memory_nbytes)}. The smallest, with all matrices in "
                f"int4, needs {readable(needed)} for {self.conversations}.\n{options}: pplex-export plan"
            )
        return self

    def choose(self, costs: Costs) -> "MixedChoice":
        """The forms. Raises BuildError if nothing is within the budget, or if that does not fit."""
        forms = (
            self._fitting(upgrades(self.config, costs, self.compiled)) if self.budget is None else self._within(costs)
        )
        plan, most = self._plan(forms), self.target.memory_nbytes
        if self.limited and plan.needed_nbytes(self.slots) > most:
            text, audio = predicted(costs, forms)
            raise BuildError(
                f"The smallest mix within the budget (it drifts by text={text:.2g},audio={audio:.2g}) needs "
                f"{readable(plan.needed_nbytes(self.slots))}, but {self.target.title} has {readable(most)}. Allow more "
                "drift, or name a larger target."
            )
        return MixedChoice(self, plan, forms, predicted(costs, forms))

    def _fitting(self, found: Upgrades) -> Forms:
        """The longest prefix of the upgrades that fits. The need grows with each of them."""
        fits, above = 0, len(found.steps) + 1
        while above - fits > 1:
            middle = (fits + above) // 2
            needed = self._plan(found.forms(middle)).needed_nbytes(self.slots)
            fits, above = (middle, above) if needed <= self.target.memory_nbytes else (fits, middle)
        return found.forms(fits)

    def _within(self, costs: Costs) -> Forms:
        """The smallest assignment within the budget, of those for several weights of text against audio."""
        assert self.budget is not None
        each = [
            _first_within(costs, upgrades(self.config, costs, self.compiled, share), self.budget) for share in _SHARES
        ]
        found = [forms for forms in each if forms is not None]
        if not found:
            text, audio = predicted(costs, upgrades(self.config, costs, self.compiled).forms(10**9))
            raise BuildError(
                f"No mix stays within text={self.budget[0]:g},audio={self.budget[1]:g}: the largest forms drift by "
                f"text={text:.2g},audio={audio:.2g}. Allow more, or name a --precision of more bits."
            )
        return min(found, key=self._weights_nbytes)

    def _plan(self, forms: Forms) -> MemoryPlan | ProcessorPlan:
        return self.target.plan_of(self.config, MIXED_PRECISION, self.config.temporal.capacity, forms)

    def _weights_nbytes(self, forms: Forms) -> int:
        return sum(weights_nbytes(self.config, MIXED_PRECISION, self.compiled, forms).values())

    @property
    def conversations(self) -> str:
        return conversations_text(self.slots, self.config.temporal.capacity, self.config.frame_ms)


def _first_within(costs: Costs, found: Upgrades, budget: Cost) -> Forms | None:
    """The shortest prefix of the upgrades within the budget. The drift falls with each of them, for text and for audio."""

    def within(count: int) -> bool:
        return all(drift <= most for drift, most in zip(predicted(costs, found.forms(count)), budget, strict=True))

    outside, inside = -1, len(found.steps)
    if not within(inside):
        return None
    while inside - outside > 1:
        middle = (inside + outside) // 2
        outside, inside = (outside, middle) if within(middle) else (middle, inside)
    return found.forms(inside)


@dataclass(frozen=True)
class MixedChoice:
    """The form of each group, the memory that the bundle needs, and the drift that is predicted for it."""

    mixing: Mixing
    plan: MemoryPlan | ProcessorPlan
    forms: Forms
    drift: Cost

    @property
    def precision(self) -> str:
        return MIXED.name

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        target, budget = self.mixing.target, self.mixing.budget
        return {
            "by": MIXED.name,
            "precision": MIXED.name,
            "target": target.title,
            "memory_nbytes": target.memory_nbytes if self.mixing.limited else None,
            "needed_nbytes": self.plan.needed_nbytes(self.mixing.slots),
            "slots": self.mixing.slots,
            "capacity": self.plan.capacity,
            "budget": None if budget is None else dict(zip(("text", "audio"), budget, strict=True)),
            "drift": dict(zip(("text", "audio"), self.drift, strict=True)),
            "forms": {graph: dict(groups) for graph, groups in self.forms.items()},
        }

    def to_text(self) -> str:
        """The choice, for `build` to print."""
        target = self.mixing.target
        of = f" of {readable(target.memory_nbytes)}" if self.mixing.limited else ""
        needed = readable(self.plan.needed_nbytes(self.mixing.slots))
        return (
            f"The mix for {target.title} needs {needed}{of} for {self.mixing.conversations}: {self.plan.parts}; "
            f"{readable(RESERVE_NBYTES)} stay free.\n"
            f"  Its weights add a drift of text={self.drift[0]:.2g}, audio={self.drift[1]:.2g} nats (predicted)."
        )
