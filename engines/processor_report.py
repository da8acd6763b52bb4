"""The memory that a model needs on a processor, by precision, beside what the machine has. Called by `cli.engines`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.engines.choice import ON_PROCESSORS, choose, target_of
from pplex.engines.plan import RESERVE_NBYTES
from pplex.engines.plan_report import open_model, with_capacity
from pplex.engines.processor import ProcessorPlan
from pplex.measure.tables import markdown, readable
from pplex.runtime.config import LIKE_ACTIVATIONS
from pplex.runtime.errors import BuildError
from pplex.runtime.precision import parse_precision

_HEADERS = ("precision", "weights", "first load", "later loads", "a conversation", "conversations that fit")


@dataclass(frozen=True)
class ProcessorReport:
    """Plans by [precision][capacity] for a machine with `memory_nbytes`; `choice` is what a build chooses, or None."""

    memory_nbytes: int
    precisions: tuple[str, ...]
    plans: tuple[tuple[ProcessorPlan, ...], ...]
    choice: str | None

    def to_dict(self) -> list[dict[str, Any]]:
        return [
            one.to_dict() | {"memory_nbytes": self.memory_nbytes, "conversations": one.fitting(self.memory_nbytes)}
            for plans in self.plans
            for one in plans
        ]

    def to_text(self) -> str:
        """A Markdown table, and what a build chooses."""
        rows = [self._row(name, plans) for name, plans in zip(self.precisions, self.plans, strict=True)]
        steps = " / ".join(str(one.capacity) for one in self.plans[0])
        kept = (
            f"A processor with {readable(self.memory_nbytes)}, of which {readable(RESERVE_NBYTES)} stay free. "
            f"Conversations have {steps} steps of context. The first load converts int8 and int4."
        )
        return "\n\n".join(text for text in (markdown(_HEADERS, rows), kept, self.choice) if text)

    def _row(self, name: str, plans: Sequence[ProcessorPlan]) -> tuple[str, ...]:
        sizes = (plans[0].weights_nbytes, plans[0].first_nbytes, plans[0].loaded_nbytes)
        sessions = " / ".join(readable(one.session_nbytes) for one in plans)
        fitting = " / ".join(str(one.fitting(self.memory_nbytes)) for one in plans)
        return (name, *map(readable, sizes), sessions, fitting)


def report_processor(
    source: Path | None,
    memory_nbytes: int,
    precisions: Sequence[str] = (),
    capacities: Sequence[int] = (),
    kv_cache: str = LIKE_ACTIVATIONS,
) -> ProcessorReport:
    """Plans for a bundle, a checkpoint or, without a source, the released model, on a processor with this memory.

    Defaults: a bundle's own precisions, or those that run fast on a processor; the model's capacity.
    Raises as `report_plans`.
    """
    model = open_model(source, kv_cache)
    as_built = model.precision is not None and not precisions
    names = ("as built",) if as_built else tuple(precisions) or ON_PROCESSORS
    parsed = [model.precision or {}] if as_built else [parse_precision(name) for name in names]
    steps = tuple(capacities) or (model.config.temporal.capacity,)
    plans = tuple(tuple(ProcessorPlan(model.config, one, capacity) for capacity in steps) for one in parsed)
    try:
        choice = choose(with_capacity(model.config, steps[0]), target_of(None, memory_nbytes)).to_text()
    except BuildError as error:
        choice = str(error)
    return ProcessorReport(memory_nbytes, names, plans, None if as_built or precisions else choice)
