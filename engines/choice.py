"""Chooses the precision of a build: the most faithful one that the target runs fast, and whose bundle fits its memory.

Called by `export.build_plan`, `engines.plan_report` and `doctor.sizes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pplex.engines.plan import RESERVE_NBYTES, MemoryPlan, capacities, plan
from pplex.engines.processor import ProcessorPlan
from pplex.measure.tables import readable
from pplex.runtime.cgroup import total_memory
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import BuildError, ConfigError
from pplex.runtime.forms import NO_FORMS, Forms
from pplex.runtime.gpus import Gpu
from pplex.runtime.graphs import DEFAULT_SLOTS
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.precision import AUTO, PRECISIONS, parse_precision
from pplex.runtime.tolerances import tolerances

# The first is exact. ONNX Runtime computes float16 and fp8 on a processor in float32: no faster, and with more memory.
ON_PROCESSORS = ("fp32", "int8", "int4")


def by_fidelity() -> tuple[str, ...]:
    """All precisions, the most faithful first: by the drift that a validation allows, which comes from measurements."""
    return tuple(sorted(PRECISIONS, key=lambda name: tolerances("temporal", name)["text_kl"]))


@dataclass(frozen=True)
class Target:
    """What a bundle will run on: a GPU with engines, or a processor with ONNX Runtime if `gpu` is None.

    for_engines: the processor runs the graphs that engines are compiled from.
    """

    title: str
    memory_nbytes: int
    gpu: Gpu | None = None
    for_engines: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that it runs fast, the most faithful first. In float32, a GPU's attention is separate kernels."""
        known = ON_PROCESSORS if self.gpu is None else tuple(name for name in self.gpu.precisions if name != "fp32")
        return tuple(name for name in by_fidelity() if name in known)

    def plan(self, config: ModelConfig, name: str, capacity: int) -> MemoryPlan | ProcessorPlan:
        """The memory of the model in the precision `name`."""
        return self.plan_of(config, parse_precision(name), capacity)

    def plan_of(
        self, config: ModelConfig, precision: Mapping[str, str], capacity: int, forms: Forms = NO_FORMS
    ) -> MemoryPlan | ProcessorPlan:
        """The memory of the model in a precision for each graph. `forms`: those of a mixed precision."""
        if self.gpu is None:
            return ProcessorPlan(config, precision, capacity, self.for_engines, forms)
        weights = sum(weights_nbytes(config, precision, compiled=True, forms=forms).values())
        return plan(config, precision, self.gpu, capacity, weights)


def target_of(gpu: Gpu | None, memory_nbytes: int | None = None, for_engines: bool = False) -> Target:
    """The target that a user named: a GPU, or a processor with this memory; without both, this machine.

    Raises ConfigError if its memory is not known.
    """
    title = gpu.title if gpu else "a processor" if memory_nbytes else "this machine"
    known = memory_nbytes or (gpu.memory_nbytes if gpu else total_memory())
    if known is None:
        raise ConfigError(
            f"The memory of {title} is not known, so --precision auto cannot choose. "
            "Add its memory, such as --memory 16GB, or name a --precision."
        )
    return Target(title, known, gpu, for_engines)


@dataclass(frozen=True)
class Choice:
    """A precision for a target, and the conversations and steps of context that fit with it.

    asked: the conversations and steps that were asked for. better: of the more faithful precisions the one with the
    smallest need in bytes, for the same conversations; None if there is none.
    """

    target: Target
    precision: str
    plan: MemoryPlan | ProcessorPlan
    slots: int
    asked: tuple[int, int]
    better: tuple[str, int] | None

    @property
    def capacity(self) -> int:
        return self.plan.capacity

    @property
    def needed_nbytes(self) -> int:
        return self.plan.needed_nbytes(self.slots)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        name, nbytes = self.better or (None, None)
        return {
            "by": AUTO,
            "precision": self.precision,
            "target": self.target.title,
            "memory_nbytes": self.target.memory_nbytes,
            "needed_nbytes": self.needed_nbytes,
            "slots": self.slots,
            "capacity": self.capacity,
            "better": name,
            "better_needs_nbytes": nbytes,
        }

    def to_text(self) -> str:
        """The choice and its reason, for `build` to print before it starts."""
        title, frame_ms = self.target.title, self.plan.config.frame_ms
        less = (self.slots, self.capacity) != self.asked
        lines = (
            f"--precision auto chooses {self.precision} for {title}: it needs {readable(self.needed_nbytes)} of "
            f"{readable(self.target.memory_nbytes)} for {conversations_text(self.slots, self.capacity, frame_ms)}.",
            f"  {self.plan.parts}; {readable(RESERVE_NBYTES)} stay free.",
            f"  No precision has room for {conversations_text(*self.asked, frame_ms)}." if less else "",
            f"  More faithful: {self._more_faithful}.",
        )
        return "\n".join(line for line in lines if line)

    @property
    def _more_faithful(self) -> str:
        """The next better precision and its need; for a GPU also with how many slots it would fit."""
        if self.better is None:
            return f"none that {self.target.title} runs fast"
        name, nbytes = self.better
        other = self.target.plan(self.plan.config, name, self.capacity)
        fewer = [n for n in range(1, self.slots) if other.needed_nbytes(n) <= self.target.memory_nbytes]
        return f"{name}, which needs {readable(nbytes)}" + (f", or --slots {fewer[-1]}" if fewer else "")


def choose(config: ModelConfig, target: Target, slots: int | None = None, shorten: bool = True) -> Choice:
    """The most faithful precision that fits `slots` conversations with the config's capacity.

    Without `slots`, a processor gets one conversation, and a GPU DEFAULT_SLOTS, or as many as fit. If no precision fits even
    one and `shorten` is true, the rings get shorter. Raises BuildError that names the smallest need if nothing fits.
    """
    full = config.temporal.capacity
    asked = slots or (DEFAULT_SLOTS if target.gpu else 1), full
    lengths = capacities(full) if shorten and target.gpu else (full,)
    for count, capacity in (asked, *((slots or 1, length) for length in lengths)):
        found = _fitting(config, target, count, capacity)
        if found is not None:
            return _with_more_slots(config, replace(found, asked=asked))
    raise _nothing_fits(config, target, slots or 1, lengths[-1])


def _fitting(config: ModelConfig, target: Target, slots: int, capacity: int) -> Choice | None:
    needs: dict[str, int] = {}
    for name in target.precisions:
        sizes = target.plan(config, name, capacity)
        if sizes.needed_nbytes(slots) <= target.memory_nbytes:
            better = min(needs.items(), key=lambda item: item[1], default=None)
            return Choice(target, name, sizes, slots, (slots, capacity), better)
        needs[name] = sizes.needed_nbytes(slots)
    return None


def _with_more_slots(config: ModelConfig, found: Choice) -> Choice:
    """The same precision with as many slots as fit, up to those asked for."""
    target, counts = found.target, range(found.slots, max(found.slots, found.asked[0]) + 1)
    slots = max(n for n in counts if found.plan.needed_nbytes(n) <= target.memory_nbytes)
    most = _fitting(config, target, slots, found.capacity)
    return replace(most, asked=found.asked) if most else found


def _nothing_fits(config: ModelConfig, target: Target, slots: int, capacity: int) -> BuildError:
    needs = {name: target.plan(config, name, capacity).needed_nbytes(slots) for name in target.precisions}
    name = min(needs, key=lambda one: needs[one])
    if target.gpu is None:
        advice = (
            "If the bundle is for a larger machine, give the memory of that one, such as --memory 32GB. "
            f"To build it anyway: --precision {name}"
        )
    else:
        fewer = "fewer --slots, " if slots > 1 else ""
        advice = f"Choose {fewer}a smaller --capacity, or a GPU with more memory: pplex-export plan"
    return BuildError(
        f"No precision fits: {target.title} has {readable(target.memory_nbytes)}. The smallest that it runs fast, {name}, "
        f"needs {readable(needs[name])} for {conversations_text(slots, capacity, config.frame_ms)}.\n{advice}"
    )


def conversations_text(slots: int, capacity: int, frame_ms: float) -> str:
    """As in: 8 conversations with 3000 steps of context (4:00 minutes)."""
    seconds = round(capacity * frame_ms / 1000)
    count = "1 conversation" if slots == 1 else f"{slots} conversations"
    return f"{count} with {capacity} steps of context ({seconds // 60}:{seconds % 60:02} minutes)"
