"""The plan of a build, made once before anything is written: called by `export.build`."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pplex.engines.assignment import Costs
from pplex.engines.choice import Choice, Target, choose, target_of
from pplex.engines.library import DEFAULT_OPTIONS, EngineOptions
from pplex.engines.mixed_choice import MIXED_PRECISION, MixedChoice, Mixing
from pplex.export.calibration import DEFAULT_CALIBRATION, calibration_nbytes, needs_calibration, stored_calibration
from pplex.export.checkpoint import Checkpoint
from pplex.export.finite import stored_tensors
from pplex.export.sensitivity import sensitivity_nbytes, stored_sensitivity
from pplex.export.weights import sources
from pplex.runtime.config import CODEBOOKS, INT8, INT8_PAIRS, LIKE_ACTIVATIONS, MIN_CAPACITY, ModelConfig
from pplex.runtime.errors import BuildError, CalibrationError, ConfigError
from pplex.runtime.forms import NO_FORMS, Forms
from pplex.runtime.gpus import Gpu
from pplex.runtime.graphs import DEFAULT_SLOTS
from pplex.runtime.parameters import build_nbytes, weights_nbytes
from pplex.runtime.precision import FP32, parse_precision


@dataclass(frozen=True)
class Auto:
    """How to choose a precision. `slots`: as the user named them, or None.

    memory_nbytes: of the target; None for that of the GPU, or of this machine.
    """

    slots: int | None = None
    memory_nbytes: int | None = None


@dataclass(frozen=True)
class Mix(Auto):
    """How to choose the form of each matrix. `budget`: the most drift of text and audio in nats; None: what fits."""

    budget: tuple[float, float] | None = None


@dataclass(frozen=True)
class BuildOptions:
    """What to build from a checkpoint.

    precision: a name for each graph.
    calibration: a folder of recordings; a stored calibration (its file, or the bundle that holds it); "default" for
    synthetic speech; None for no calibration.
    capacity: steps of context of the temporal transformer; None for the checkpoint's.
    kv_cache: INT8 for rings in int8, in pairs if the graphs are made for engines.
    gpu: the GPU to compile engines for, with up to `slots` conversations at once. Without it, ONNX Runtime runs the graphs.
    auto: choose the precision, or with a Mix the form of each matrix, and what the user left open; `precision` and `slots`
    are then not used. None: as given.
    for_engines: without a GPU, make the graphs that engines are compiled from. ONNX Runtime runs them too, but more slowly.
    lora: an adapter to merge into the weights, with its scaling if the config.json beside it does not name that.
    """

    depth_steps: int = CODEBOOKS
    precision: Mapping[str, str] = field(default_factory=lambda: dict(FP32))
    calibration: str | os.PathLike[str] | None = DEFAULT_CALIBRATION
    capacity: int | None = None
    gpu: Gpu | None = None
    slots: int = DEFAULT_SLOTS
    engine: EngineOptions = DEFAULT_OPTIONS
    for_engines: bool = False
    lora: os.PathLike[str] | None = None
    lora_scaling: float | None = None
    auto: Auto | None = None
    kv_cache: str = LIKE_ACTIVATIONS

    @property
    def compiled(self) -> bool:
        """Whether graphs are made for engines."""
        return self.for_engines or self.gpu is not None

    @property
    def _rings(self) -> str:
        return INT8_PAIRS if self.kv_cache == INT8 and self.compiled else self.kv_cache

    def config(self, checkpoint: Checkpoint) -> ModelConfig:
        """The checkpoint's sizes, changed by the options. Raises ConfigError."""
        config = replace(checkpoint.config, depth_steps=self.depth_steps, kv_cache=self._rings)
        if self.capacity is None:
            return config
        if not MIN_CAPACITY <= self.capacity <= config.temporal.capacity:
            raise ConfigError(
                f"--capacity {self.capacity} is out of range: this model can have {MIN_CAPACITY} to "
                f"{config.temporal.capacity} steps (12.5 a second, including the prompt)."
            )
        return replace(config, temporal=replace(config.temporal, capacity=self.capacity))


_NEARLY_EXACT = ("fp32", "fp16")  # a mix of smaller forms is never nearer to float32
DEFAULT_BUILD = BuildOptions()


@dataclass(frozen=True)
class BuildPlan:
    """One build: its checkpoint, options and model sizes, and the bytes that it reads and writes.

    `options` are complete: with a `choice`, they have what it chose. It is None if the user named the precision.
    `notes` are lines for the user. `mixing`: the forms are chosen after the calibration (`mixed`); until then they are the
    smallest.
    """

    checkpoint: Checkpoint
    options: BuildOptions
    choice: Choice | MixedChoice | None
    mixing: Mixing | None
    forms: Forms
    notes: tuple[str, ...]
    config: ModelConfig
    weights_nbytes: int  # of all graphs
    disk_nbytes: int
    calibrated: bool
    progress_nbytes: int  # weights checked, weights written, and weights read for calibration

    def mixed(self, costs: Costs) -> "BuildPlan":
        """The plan with the forms for these costs. Raises BuildError: see `Mixing.choose`."""
        assert self.mixing is not None
        choice, before = self.mixing.choose(costs), self.weights_nbytes
        config, options = self.config, self.options
        weights = sum(weights_nbytes(config, options.precision, options.compiled, choice.forms).values())
        disk = build_nbytes(config, options.precision, options.gpu is not None, choice.forms)
        progress = self.progress_nbytes + weights - before
        return replace(
            self, choice=choice, forms=choice.forms, weights_nbytes=weights, disk_nbytes=disk, progress_nbytes=progress
        )


def plan_build(checkpoint: Checkpoint, options: BuildOptions) -> BuildPlan:
    """The plan for these options.

    Raises CheckpointError, ConfigError and CalibrationError for options that do not fit, BuildError if no precision fits
    the target.
    """
    options, choice, mixing = _complete(options, checkpoint)
    notes = [] if choice is None else [choice.to_text()]
    config, precision, forms = options.config(checkpoint), options.precision, mixing.smallest if mixing else NO_FORMS
    if checkpoint.tensors:  # before a download there are none
        sources("depth", config, checkpoint)
    if config.int8_rings and options.calibration is None:
        raise CalibrationError(
            "--kv-cache int8 needs a calibration. Leave --calibration out for synthetic speech, or name a folder of "
            "recordings."
        )
    calibrated = needs_calibration(precision, options.calibration is not None, options.compiled) or config.int8_rings
    if options.calibration not in (None, DEFAULT_CALIBRATION) and not calibrated:
        if choice is None:
            raise CalibrationError(
                "Only fp8, int4, mixed, and int8 for engines use a calibration, and --kv-cache int8: leave "
                "--calibration out, or choose one of these."
            )
        notes.append(f"{choice.precision} uses no calibration here: {options.calibration} is not read.")
        options = replace(options, calibration=DEFAULT_CALIBRATION)
    weights = sum(weights_nbytes(config, precision, options.compiled, forms).values())
    disk = build_nbytes(config, precision, options.gpu is not None, forms)
    calibrates = calibrated and options.calibration is not None and stored_calibration(options.calibration) is None
    measures = (
        mixing is not None and options.calibration is not None and stored_sensitivity(options.calibration) is None
    )
    checked = sum(tensor.nbytes for tensor in stored_tensors(checkpoint.tensors.values()))
    progress = checked + weights + (calibration_nbytes(config) if calibrates else 0)
    progress += sensitivity_nbytes(config) if measures else 0
    return BuildPlan(
        checkpoint, options, choice, mixing, forms, tuple(notes), config, weights, disk, calibrated, progress
    )


def _complete(options: BuildOptions, checkpoint: Checkpoint) -> tuple[BuildOptions, Choice | None, Mixing | None]:
    """The options with a chosen precision, and the choice, or what to mix the forms for.

    Unchanged and None if the user named the precision.
    """
    if options.auto is None:
        return options, None, None
    config, asked = options.config(checkpoint), options.auto
    if isinstance(asked, Mix):
        found = _mix(options, config, asked)
        if isinstance(found, Mixing):
            slots = options.slots if options.gpu is None else found.slots
            return replace(options, precision=MIXED_PRECISION, slots=slots, auto=None), None, found
        return _with(options, config, found), found, None
    target = target_of(options.gpu, asked.memory_nbytes, options.for_engines)
    choice = choose(config, target, asked.slots, shorten=options.capacity is None)
    return _with(options, config, choice), choice, None


def _mix(options: BuildOptions, config: ModelConfig, asked: Mix) -> Choice | Mixing:
    """What to mix the forms for; a choice of fp32 or fp16 instead, if it fits. Raises BuildError and GpuError."""
    slots = asked.slots or 1
    if (
        asked.budget is not None
        and asked.memory_nbytes is None
        and (options.gpu is None or not options.gpu.memory_nbytes)
    ):
        target = Target(
            "a processor" if options.gpu is None else options.gpu.title, 0, options.gpu, options.for_engines
        )
        return Mixing(config, target, slots, limited=False, budget=asked.budget).checked()
    target = target_of(options.gpu, asked.memory_nbytes, options.for_engines)
    if asked.budget is None:
        with suppress(BuildError):
            choice = choose(config, target, asked.slots or 1, shorten=False)
            if choice.precision in _NEARLY_EXACT:
                return choice
    return Mixing(config, target, slots, budget=asked.budget).checked()


def _with(options: BuildOptions, config: ModelConfig, choice: Choice) -> BuildOptions:
    capacity = options.capacity if choice.capacity == config.temporal.capacity else choice.capacity
    slots = options.slots if options.gpu is None else choice.slots
    precision = parse_precision(choice.precision)
    return replace(options, precision=precision, capacity=capacity, slots=slots, auto=None)
