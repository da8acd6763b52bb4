"""The plan of a build, made once before anything is written: called by `export.build`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pplex.engines.choice import Choice, choose, target_of
from pplex.engines.library import DEFAULT_OPTIONS, EngineOptions
from pplex.export.calibration import DEFAULT_CALIBRATION, calibration_nbytes, needs_calibration, stored_calibration
from pplex.export.checkpoint import Checkpoint
from pplex.export.finite import stored_tensors
from pplex.export.weights import sources
from pplex.runtime.config import CODEBOOKS, MIN_CAPACITY, ModelConfig
from pplex.runtime.errors import CalibrationError, ConfigError
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
class BuildOptions:
    """What to build from a checkpoint.

    precision: a name for each graph.
    calibration: a folder of recordings; a stored calibration (its file, or the bundle that holds it); "default" for
    synthetic speech; None for no calibration.
    capacity: steps of context of the temporal transformer; None for the checkpoint's.
    gpu: the GPU to compile engines for, with up to `slots` conversations at once. Without it, ONNX Runtime runs the graphs.
    auto: choose the precision, and what the user left open; `precision` and `slots` are then not used. None: as given.
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

    @property
    def compiled(self) -> bool:
        """Whether graphs are made for engines."""
        return self.for_engines or self.gpu is not None

    def config(self, checkpoint: Checkpoint) -> ModelConfig:
        """The checkpoint's sizes, changed by the options. Raises ConfigError."""
        config = replace(checkpoint.config, depth_steps=self.depth_steps)
        if self.capacity is None:
            return config
        if not MIN_CAPACITY <= self.capacity <= config.temporal.capacity:
            raise ConfigError(
                f"--capacity {self.capacity} is out of range: this model can have {MIN_CAPACITY} to "
                f"{config.temporal.capacity} steps (12.5 a second, including the prompt)."
            )
        return replace(config, temporal=replace(config.temporal, capacity=self.capacity))


DEFAULT_BUILD = BuildOptions()


@dataclass(frozen=True)
class BuildPlan:
    """One build: its checkpoint, options and model sizes, and the bytes that it reads and writes.

    `options` are complete: with a `choice`, they have what it chose. It is None if the user named the precision.
    `notes` are lines for the user.
    """

    checkpoint: Checkpoint
    options: BuildOptions
    choice: Choice | None
    notes: tuple[str, ...]
    config: ModelConfig
    weights_nbytes: int  # of all graphs
    disk_nbytes: int
    calibrated: bool
    progress_nbytes: int  # weights checked, weights written, and weights read for calibration


def plan_build(checkpoint: Checkpoint, options: BuildOptions) -> BuildPlan:
    """The plan for these options.

    Raises CheckpointError, ConfigError and CalibrationError for options that do not fit, BuildError if no precision fits
    the target.
    """
    options, choice = _complete(options, checkpoint)
    notes = [] if choice is None else [choice.to_text()]
    config, precision = options.config(checkpoint), options.precision
    if checkpoint.tensors:  # before a download there are none
        sources("depth", config, checkpoint)
    calibrated = needs_calibration(precision, options.calibration is not None, options.compiled)
    if options.calibration not in (None, DEFAULT_CALIBRATION) and not calibrated:
        if choice is None:
            raise CalibrationError(
                "Only fp8, int4, and int8 for engines use a calibration: leave --calibration out, or choose one of these."
            )
        notes.append(f"{choice.precision} uses no calibration here: {options.calibration} is not read.")
        options = replace(options, calibration=DEFAULT_CALIBRATION)
    weights = sum(weights_nbytes(config, precision, options.compiled).values())
    disk = build_nbytes(config, precision, compiled=options.gpu is not None)
    calibrates = calibrated and options.calibration is not None and stored_calibration(options.calibration) is None
    checked = sum(tensor.nbytes for tensor in stored_tensors(checkpoint.tensors.values()))
    progress = checked + weights + (calibration_nbytes(config) if calibrates else 0)
    return BuildPlan(checkpoint, options, choice, tuple(notes), config, weights, disk, calibrated, progress)


def _complete(options: BuildOptions, checkpoint: Checkpoint) -> tuple[BuildOptions, Choice | None]:
    """The options with a chosen precision, and the choice; unchanged and None if the user named the precision."""
    if options.auto is None:
        return options, None
    config, asked = options.config(checkpoint), options.auto
    target = target_of(options.gpu, asked.memory_nbytes, options.for_engines)
    choice = choose(config, target, asked.slots, shorten=options.capacity is None)
    capacity = options.capacity if choice.capacity == config.temporal.capacity else choice.capacity
    slots = options.slots if options.gpu is None else choice.slots
    precision = parse_precision(choice.precision)
    return replace(options, precision=precision, capacity=capacity, slots=slots, auto=None), choice
