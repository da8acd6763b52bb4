"""From a checkpoint to a bundle: written to a folder beside the target and renamed when whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pplex.engines.compile import compile_engine, engine_entry
from pplex.engines.library import DEFAULT_OPTIONS, EngineOptions, check_options, open_library
from pplex.engines.plan import plan
from pplex.export.calibration import (
    CALIBRATION_FILE,
    DEFAULT_CALIBRATION,
    Calibration,
    calibration_nbytes,
    find_calibration,
    needs_calibration,
    stored_calibration,
    weights_mark,
)
from pplex.export.checkpoint import REQUIRED_FILES, TEXT_TOKENIZER_FILE, Checkpoint, open_checkpoint
from pplex.export.checkpoint import VOICES_FILE as VOICES_ARCHIVE
from pplex.export.exporter import export_graph
from pplex.export.source import CheckpointSource
from pplex.export.staging import Steps, may_take, whole_folder
from pplex.export.voices import read_voices, write_voices
from pplex.runtime.bundle import (
    LOCK_FILE,
    MANIFEST_FILE,
    SCHEMA,
    STEPS_FILE,
    TOKENIZER_FILE,
    VOICES_FILE,
    Bundle,
    Voice,
    file_sha256,
    is_bundle,
    manifest_digest,
    open_bundle,
)
from pplex.runtime.config import CODEBOOKS, MIN_CAPACITY, ModelConfig
from pplex.runtime.errors import BuildError, CalibrationError, ConfigError
from pplex.runtime.files import files_below, is_file
from pplex.runtime.gpus import ONNXRUNTIME, Gpu
from pplex.runtime.graphs import DEFAULT_SLOTS, graph_specs
from pplex.runtime.parameters import build_nbytes, weights_nbytes
from pplex.runtime.precision import FP32, GRAPH_NAMES
from pplex.runtime.text import Tokenizer

Check = Callable[[Bundle, Checkpoint], Mapping[str, Any]]
NOT_CHECKED: Mapping[str, Any] = MappingProxyType(
    {"checked": False, "reason": "the build was asked not to (--no-validate)"}
)

# What is being done, the bytes of weights written since the last call, and those to be written in all.
Progress = Callable[[str, int, int], None]


def unchecked(bundle: Bundle, checkpoint: Checkpoint) -> Mapping[str, Any]:
    return NOT_CHECKED


def _silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class BuildOptions:
    """What is made of a checkpoint.

    precision: a name for each graph. calibration: a folder of recordings, what an earlier calibration stored (a file, or
    the bundle it is in), "default" for synthetic speech, None to do without. capacity: steps the temporal transformer
    remembers, the checkpoint's if None. gpu: what to compile engines for, of up to `slots` conversations at once; without
    it ONNX Runtime runs the graphs.
    """

    depth_steps: int = CODEBOOKS
    precision: Mapping[str, str] = field(default_factory=lambda: dict(FP32))
    calibration: str | os.PathLike[str] | None = DEFAULT_CALIBRATION
    capacity: int | None = None
    gpu: Gpu | None = None
    slots: int = DEFAULT_SLOTS
    engine: EngineOptions = DEFAULT_OPTIONS

    def config(self, checkpoint: Checkpoint) -> ModelConfig:
        """The checkpoint's sizes with what the options change. Raises ConfigError."""
        config = replace(checkpoint.config, depth_steps=self.depth_steps)
        if self.capacity is None:
            return config
        if not MIN_CAPACITY <= self.capacity <= config.temporal.capacity:
            raise ConfigError(
                f"A capacity of {self.capacity} steps was asked for; this model can have {MIN_CAPACITY} to "
                f"{config.temporal.capacity} (12.5 a second, the prompt's included)."
            )
        return replace(config, temporal=replace(config.temporal, capacity=self.capacity))


def build(
    source: CheckpointSource,
    out: Path,
    options: BuildOptions = BuildOptions(),
    progress: Progress = _silent,
    tell: Callable[[str], None] = lambda line: None,
    check: Check = unchecked,
) -> Path:
    """Make the bundle `out` of a checkpoint: its four graphs or their engines, tokenizer and voices; returns `out`.

    An existing bundle is replaced in one rename once the new one is whole and opens. Weights are read and written tensor
    by tensor. A build that is interrupted keeps the graphs and engines it has finished, and the same build goes on from
    there. `tell` is given what will fit the GPU. What `check` says of the new bundle is kept in its manifest, as `parity`.
    Raises CheckpointError for an unfit checkpoint, CalibrationError, ConfigError and GpuError for options that do not fit
    it, BuildError or OutputError for a graph or a target that cannot be written.
    """
    _check_target(out)
    checkpoint = open_checkpoint(source.folder)
    config = options.config(checkpoint)
    calibrated = needs_calibration(options.precision, options.calibration is not None)
    if options.calibration not in (None, DEFAULT_CALIBRATION) and not calibrated:
        raise CalibrationError(
            "Only fp8 and int4 are calibrated: leave --calibration out, or ask for one --precision of them."
        )
    if options.gpu is not None:
        planned = plan(config, options.precision, options.gpu, config.temporal.capacity)
        planned.check(options.slots)
        check_options(open_library(options.gpu), options.engine)
        tell(planned.to_text())
    with whole_folder(out, is_bundle, resumable=True) as folder:
        _check_space(folder, config, options)
        # The small parts first: what is wrong with them is known before the long work.
        voices = read_voices(checkpoint.path(VOICES_ARCHIVE), config)
        Tokenizer(checkpoint.path(TEXT_TOKENIZER_FILE))
        steps = Steps(folder, _identity(checkpoint, config, options))
        write_voices(voices, folder / VOICES_FILE)
        shutil.copyfile(checkpoint.path(TEXT_TOKENIZER_FILE), folder / TOKENIZER_FILE)
        _make_graphs(checkpoint, config, voices, options, steps, progress)
        progress("hash", 0, sum(weights_nbytes(config, options.precision).values()))
        manifest = _manifest(folder, source, checkpoint, config, options, sorted(voices))
        _write_manifest(folder, manifest)
        progress("validate", 0, sum(weights_nbytes(config, options.precision).values()))
        _write_manifest(folder, {**manifest, "parity": dict(check(open_bundle(folder, verify=False), checkpoint))})
    return out


def _make_graphs(
    checkpoint: Checkpoint,
    config: ModelConfig,
    voices: Mapping[str, Voice],
    options: BuildOptions,
    steps: Steps,
    progress: Progress,
) -> None:
    """Calibrate, then export each graph; for a GPU, compile each and drop its file, whose weights the engine has."""
    precision, folder = options.precision, steps.folder
    total = sum(weights_nbytes(config, precision).values())
    given = options.calibration
    calibrated = needs_calibration(precision, given is not None)
    if given is not None and calibrated and stored_calibration(given) is None:
        total += calibration_nbytes(config)

    def told(stage: str) -> Callable[[int], None]:
        progress(stage, 0, total)
        return lambda nbytes: progress(stage, nbytes, total)

    def calibrate() -> None:
        assert given is not None
        found = find_calibration(given, checkpoint, config, voices, told("calibrate"))
        found.save(folder / CALIBRATION_FILE)

    calibration = None
    if calibrated:
        steps.once("calibration", calibrate)
        calibration = Calibration.load(folder / CALIBRATION_FILE, config, weights_mark(checkpoint))
    for name, spec in graph_specs(config, precision).items():
        graph, engine, capacity = folder / f"{name}.onnx", folder / f"{name}.engine", config.temporal.capacity
        if engine.name not in steps.done:
            export = partial(export_graph, name, checkpoint, config, folder, precision, calibration, told(name))
            steps.once(name, export)
        if options.gpu is not None:
            told(f"{name} for sm_{options.gpu.sm}")
            compiled = partial(
                compile_engine, graph, spec, capacity, options.gpu, options.slots, engine, options.engine
            )
            steps.once(engine.name, compiled)
            steps.remove(name)


def _identity(checkpoint: Checkpoint, config: ModelConfig, options: BuildOptions) -> str:
    """What a half-finished build must share with this one to be gone on with."""
    files = [checkpoint.path(name).resolve() for name in REQUIRED_FILES]
    if options.calibration not in (None, DEFAULT_CALIBRATION):
        given = Path(options.calibration).resolve()
        files += [given] if is_file(given) else files_below(given)
    library = "" if options.gpu is None else str(open_library(options.gpu))
    parts = [_made_by(), _made_with(), library, repr(config), repr(options)]
    parts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _made_by() -> str:
    return f"pplex-export {version('pplex-export')}"


def _made_with() -> str:
    return f"torch {version('torch')}"


def _manifest(
    folder: Path,
    source: CheckpointSource,
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: BuildOptions,
    voices: list[str],
) -> dict[str, Any]:
    calibration = folder / CALIBRATION_FILE
    files = {
        path.name: {"nbytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (LOCK_FILE, STEPS_FILE, MANIFEST_FILE)
    }
    return {
        "schema": SCHEMA,
        "made_by": _made_by(),
        "checkpoint": {
            "repo": source.repo,
            "revision": source.revision,
            "files": {name: file_sha256(checkpoint.path(name)) for name in REQUIRED_FILES},
        },
        "config": config.to_dict(),
        "precision": dict(options.precision),
        "calibration": dict(Calibration.load(calibration, config, weights_mark(checkpoint)).source)
        if calibration.exists()
        else None,
        "engines": {name: _engine(name, folder, options) for name in GRAPH_NAMES},
        "voices": voices,
        "parity": dict(NOT_CHECKED),
        "files": files,
    }


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    signed = {**manifest, "digest": manifest_digest(manifest)}
    (folder / MANIFEST_FILE).write_text(json.dumps(signed, indent=2) + "\n")


def _engine(graph: str, folder: Path, options: BuildOptions) -> dict[str, Any]:
    """A graph's entry in the manifest."""
    if options.gpu is None:
        none = dict.fromkeys(("gpu", "sm", "slots"))
        return {"kind": ONNXRUNTIME, "file": f"{graph}.onnx", **none, "made_with": _made_with()}
    return engine_entry(folder / f"{graph}.engine", options.gpu, options.slots)


def _check_target(out: Path) -> None:
    if not may_take(out, is_bundle):
        raise BuildError(
            f"{out} exists and is not a bundle: it would be overwritten. Choose another --out, or remove it."
        )


def _check_space(folder: Path, config: ModelConfig, options: BuildOptions) -> None:
    nbytes = build_nbytes(config, options.precision, compiled=options.gpu is not None)
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if free < nbytes:
        raise BuildError(
            f"The build takes {nbytes / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free. Make room, name an "
            "--out on another disk, or choose a --precision of fewer bits."
        )
