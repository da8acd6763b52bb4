"""The plans of one model for many GPUs, precisions and capacities, side by side.

Called by `cli.engines` and `doctor.sizes`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pplex.engines.choice import choose, target_of
from pplex.engines.plan import RESERVE_NBYTES, MemoryPlan, plan
from pplex.engines.plan import capacities as all_capacities
from pplex.measure.tables import markdown, readable
from pplex.runtime.backend import engines_nbytes
from pplex.runtime.bundle import is_bundle, open_bundle
from pplex.runtime.config import LIKE_ACTIVATIONS, RELEASED, ModelConfig
from pplex.runtime.config_file import read_config
from pplex.runtime.errors import BuildError, ConfigError
from pplex.runtime.files import is_file, is_folder
from pplex.runtime.gpus import GPUS, Gpu, parse_gpu
from pplex.runtime.precision import parse_precision

DEFAULT_PRECISIONS = ("fp16", "fp8", "int4")


@dataclass(frozen=True)
class Model:
    """Sizes; for a bundle also its weights and precision."""

    config: ModelConfig
    precision: Mapping[str, str] | None = None
    weights_nbytes: int | None = None


@dataclass(frozen=True)
class PlanReport:
    """Plans by [GPU][precision][capacity]; precisions keep the user's names.

    choices: for each GPU what a build chooses; None if the model is a bundle.
    """

    gpus: tuple[Gpu, ...]
    precisions: tuple[str, ...]
    capacities: tuple[int, ...]
    plans: tuple[tuple[tuple[MemoryPlan, ...], ...], ...]
    choices: tuple[str | None, ...]

    def to_dict(self) -> list[dict[str, Any]]:
        return [one.to_dict() for of_gpu in self.plans for of_precision in of_gpu for one in of_precision]

    def to_text(self) -> str:
        """Two Markdown tables: slots by GPU, and sizes by precision."""
        slots_of, auto = [f"{name} slots" for name in self.precisions], ["auto"] if self.choices[0] else []
        slots = markdown(
            ("GPU", "--gpu", "sm", "memory", "engine", "precisions", *slots_of, *auto),
            [
                (*_gpu_row(gpu, plans), *([choice] if choice else []))
                for gpu, plans, choice in zip(self.gpus, self.plans, self.choices, strict=True)
            ],
        )
        sizes = markdown(
            ("precision", "weights", "a session", "scratch"),
            [_size_row(name, plans) for name, plans in zip(self.precisions, self.plans[0], strict=True)],
        )
        steps = " / ".join(str(capacity) for capacity in self.capacities)
        frame_ms = self.plans[0][0][0].config.frame_ms
        lengths = " / ".join(_minutes(capacity * frame_ms / 1000) for capacity in self.capacities)
        kept = f"{readable(RESERVE_NBYTES)} of each GPU stay free."
        return (
            f"{slots}\n\n{sizes}\n\nSlots, sessions and scratch are for conversations of {lengths} minutes. "
            f"A longer conversation continues with its last {steps} steps as context. {kept}"
        )


def _minutes(seconds: float) -> str:
    """As in 4:00."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def report_plans(
    source: Path | None,
    gpus: Sequence[str] = (),
    precisions: Sequence[str] = (),
    capacities: Sequence[int] = (),
    memory_nbytes: int | None = None,
    kv_cache: str = LIKE_ACTIVATIONS,
) -> PlanReport:
    """Plans for a bundle, a checkpoint or, without a source, the released model.

    `memory_nbytes`: that of every GPU, instead of its own. Defaults: all known GPUs; a bundle's own precisions, or some; the
    ring's full capacity, half and a quarter of it.
    Raises GpuError, ConfigError or BundleError for unknown names, AccessError for unreadable files.
    """
    model = open_model(source, kv_cache)
    config = model.config
    as_built = model.precision is not None and not precisions
    names = ("as built",) if as_built else tuple(precisions) or DEFAULT_PRECISIONS
    chosen = named_gpus(gpus or tuple(GPUS), memory_nbytes)
    steps = tuple(capacities) or all_capacities(config.temporal.capacity)
    parsed = [model.precision] if as_built else [parse_precision(name) for name in names]
    weights = [model.weights_nbytes if as_built else None] * len(names)
    plans = tuple(
        tuple(
            tuple(plan(config, precision or {}, gpu, capacity, nbytes) for capacity in steps)
            for precision, nbytes in zip(parsed, weights, strict=True)
        )
        for gpu in chosen
    )
    shorten, asked = not capacities, with_capacity(config, steps[0])
    choices = tuple(None if as_built else _choice(asked, gpu, shorten) for gpu in chosen)
    return PlanReport(chosen, names, steps, plans, choices)


def named_gpus(names: Sequence[str], memory_nbytes: int | None) -> tuple[Gpu, ...]:
    """The GPUs that a user named, with the memory that the user gave instead of their own. Raises GpuError."""
    gpus = tuple(parse_gpu(name) for name in names)
    return gpus if memory_nbytes is None else tuple(replace(gpu, memory_nbytes=memory_nbytes) for gpu in gpus)


def with_capacity(config: ModelConfig, capacity: int) -> ModelConfig:
    """The same model with other rings."""
    return replace(config, temporal=replace(config.temporal, capacity=capacity))


def _choice(config: ModelConfig, gpu: Gpu, shorten: bool) -> str:
    """What a build without --precision chooses, as in: int8, 8 slots."""
    try:
        choice = choose(config, target_of(gpu), shorten=shorten)
    except ConfigError:
        return "?"  # the GPU's memory is not known
    except BuildError:
        return "-"
    steps = "" if choice.capacity == config.temporal.capacity else f", {choice.capacity} steps"
    return f"{choice.precision}, {choice.slots} slot{'' if choice.slots == 1 else 's'}{steps}"


def open_model(source: Path | None, kv_cache: str = LIKE_ACTIVATIONS) -> Model:
    """The sizes of a bundle or a checkpoint's folder; without a source, of the released model.

    `kv_cache`: the rings that a checkpoint would get; a bundle has its own.
    """
    if source is None:
        return Model(replace(RELEASED, kv_cache=kv_cache))
    if is_bundle(source):
        bundle = open_bundle(source, verify=False)
        return Model(bundle.config, bundle.precision, engines_nbytes(bundle.manifest))
    if not is_folder(source):
        raise ConfigError(
            f"{source} is not a folder. Name a bundle or a checkpoint, or leave it out for the released model."
        )
    if not any(is_file(source / name) for name in ("config.json", "model.safetensors")):
        raise ConfigError(
            f"{source} is neither a bundle nor a checkpoint. Name one of these, or leave it out for the released model."
        )
    return Model(replace(read_config(source / "config.json").config, kv_cache=kv_cache))


def _gpu_row(gpu: Gpu, plans: Iterable[Sequence[MemoryPlan]]) -> tuple[str, ...]:
    memory = "" if gpu.memory_nbytes is None else f"{gpu.memory_nbytes / 1e9:.0f} GB"
    slots = (_slots(of_precision) for of_precision in plans)
    return (gpu.title, gpu.name, f"sm_{gpu.sm}", memory, gpu.kind, " ".join(gpu.precisions), *slots)


def _slots(plans: Sequence[MemoryPlan]) -> str:
    if not plans[0].possible:
        return "-"
    return " / ".join("?" if one.slots is None else str(one.slots) for one in plans)


def _size_row(name: str, plans: Sequence[MemoryPlan]) -> tuple[str, ...]:
    sessions = " / ".join(readable(one.session_nbytes) for one in plans)
    scratch = " / ".join(readable(one.scratch_nbytes) for one in plans)
    return (name, readable(plans[0].weights_nbytes), sessions, scratch)
