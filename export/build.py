"""Builds a bundle from a checkpoint: called by `cli.checkpoints` and `bench.precision`.

`build` is the whole path: plan, voices and tokenizer, calibration, graphs, engines, manifest. It writes a folder beside the
target, and renames that folder when the bundle is complete.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pplex.engines.compile import compile_engine, engine_entry
from pplex.engines.library import check_options, open_library
from pplex.engines.plan import plan as plan_gpu
from pplex.export.build_plan import DEFAULT_BUILD, BuildOptions, BuildPlan, plan_build
from pplex.export.calibration import (
    CALIBRATION_FILE,
    DEFAULT_CALIBRATION,
    Calibration,
    find_calibration,
    weights_mark,
)
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.export.exporter import export_graph
from pplex.export.finite import check_finite
from pplex.export.lora import Lora
from pplex.export.memory import return_freed_memory
from pplex.export.processor_graph import write_processor_graph
from pplex.export.sensitivity import SENSITIVITY_FILE, Sensitivity, find_sensitivity
from pplex.export.source import CheckpointSource
from pplex.export.staging import Steps, may_take, whole_folder
from pplex.export.voices import find_voices, write_voices
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
    manifest_bytes,
    open_bundle,
    processor_file,
)
from pplex.runtime.config import INT8
from pplex.runtime.errors import BuildError
from pplex.runtime.files import files_below, is_file
from pplex.runtime.gpus import ONNXRUNTIME, Gpu
from pplex.runtime.graphs import graph_specs
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.text import Tokenizer

Check = Callable[[Bundle, Checkpoint], Mapping[str, Any]]
NOT_CHECKED: Mapping[str, Any] = MappingProxyType({"checked": False, "reason": "built with --no-validate"})

# Arguments: the stage, the bytes of weights read or written since the last call, the total bytes of the build.
BuildProgress = Callable[[str, int, int], None]


def unchecked(bundle: Bundle, checkpoint: Checkpoint) -> Mapping[str, Any]:
    return NOT_CHECKED


def _silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def build(
    source: CheckpointSource,
    out: Path,
    options: BuildOptions = DEFAULT_BUILD,
    progress: BuildProgress = _silent,
    tell: Callable[[str], None] = lambda line: None,
    check: Check = unchecked,
) -> Path:
    """Make the bundle `out` from a checkpoint: four graphs or engines, tokenizer and voices; returns `out`.

    A new bundle replaces an existing one with one rename, when it is complete and opens. Weights are read and written one
    tensor at a time. An interrupted build keeps its finished graphs and engines, and the same build resumes from them.
    `tell` gets lines about the chosen precision, about how many slots fit the GPU, and about each voice that is left out.
    The manifest stores the result of `check` as `parity`.
    Raises CheckpointError for a damaged or wrong checkpoint; CalibrationError, ConfigError and GpuError for options that do
    not fit it; BuildError or OutputError if a graph or the target cannot be written.
    """
    check_target(out)
    return_freed_memory()
    lora = None if options.lora is None else Path(options.lora)
    plan = plan_build(open_checkpoint(source.folder, lora, options.lora_scaling), options)
    if unused := plan.checkpoint.layout.unused:
        tell(f"The weights come from {plan.checkpoint.layout.weights_name}. Not used: {', '.join(unused)}.")
    if not plan.config.takes_prompt:
        tell("This is a Moshi model: its conversations begin without a voice and without a persona.")
    for note in plan.notes:
        tell(note)
    if options.gpu is not None:
        tell(check_gpu(plan, options.gpu))
    checkpoint, total = plan.checkpoint, plan.progress_nbytes
    with whole_folder(out, is_bundle, resumable=True) as folder:
        _check_space(folder, plan)
        # The small parts first: their faults show before the long work.
        voices = _find_voices(plan, tell)
        Tokenizer(checkpoint.tokenizer)
        steps = Steps(folder, _identity(plan))
        write_voices(voices, folder / VOICES_FILE)
        shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER_FILE)
        progress("check", 0, total)
        check_finite(checkpoint.tensors.values(), lambda nbytes: progress("check", nbytes, total))
        calibration = _calibrate(plan, voices, steps, progress)
        if plan.mixing is not None and calibration is not None:
            plan = _mix(plan, calibration, voices, steps, progress)
            assert plan.choice is not None
            tell(plan.choice.to_text())
            _check_space(folder, plan)
        _make_graphs(plan, calibration, steps, progress)
        progress("hash", 0, total)
        manifest = _manifest(folder, source, plan, sorted(voices))
        _write_manifest(folder, manifest)
        progress("validate", 0, total)
        _write_manifest(folder, {**manifest, "parity": dict(check(open_bundle(folder, verify=False), checkpoint))})
    return out


def check_gpu(plan: BuildPlan, gpu: Gpu) -> str:
    """A line about how many slots fit the GPU. Raises GpuError if the options do not fit, BuildError without its library."""
    options, capacity = plan.options, plan.config.temporal.capacity
    fit = plan_gpu(plan.config, options.precision, gpu, capacity, plan.weights_nbytes)
    fit.check(options.slots)
    check_options(open_library(gpu), options.engine)
    return fit.to_text()


def _find_voices(plan: BuildPlan, tell: Callable[[str], None]) -> dict[str, Voice]:
    """The checkpoint's voices. `tell` gets a line about each one that is left out."""
    if not plan.config.takes_prompt:
        if plan.checkpoint.layout.voices:
            tell("Its voices are left out: a Moshi model takes none.")
        return {}
    found = find_voices(plan.checkpoint.folder, plan.config)
    for warning in found.warnings:
        tell(f"Warning: a voice cannot be used and is left out. {warning}")
    return found.voices


def _started(plan: BuildPlan, progress: BuildProgress, stage: str) -> Callable[[int], None]:
    """Show a stage, and return a function that counts its bytes."""
    progress(stage, 0, plan.progress_nbytes)
    return lambda nbytes: progress(stage, nbytes, plan.progress_nbytes)


def _calibrate(
    plan: BuildPlan, voices: Mapping[str, Voice], steps: Steps, progress: BuildProgress
) -> Calibration | None:
    """The calibration, if the precision uses one."""
    if not plan.calibrated:
        return None
    path, given = steps.folder / CALIBRATION_FILE, plan.options.calibration
    assert given is not None

    def calibrate() -> None:
        counted = _started(plan, progress, "calibrate")
        find_calibration(given, plan.checkpoint, plan.config, voices, counted).save(path)

    steps.once("calibration", calibrate)
    return Calibration.load(path, plan.config, weights_mark(plan.checkpoint))


def _mix(
    plan: BuildPlan, calibration: Calibration, voices: Mapping[str, Voice], steps: Steps, progress: BuildProgress
) -> BuildPlan:
    """The plan with the form of each matrix. The measurement is kept: the same forms follow if the build is interrupted."""
    path, given = steps.folder / SENSITIVITY_FILE, plan.options.calibration
    assert given is not None

    def measure() -> None:
        counted = _started(plan, progress, "sensitivity")
        find_sensitivity(given, plan.checkpoint, plan.config, calibration, voices, counted).save(path)

    steps.once("sensitivity", measure)
    return plan.mixed(Sensitivity.load(path, plan.config, weights_mark(plan.checkpoint)).of(plan.options.compiled))


def _make_graphs(plan: BuildPlan, calibration: Calibration | None, steps: Steps, progress: BuildProgress) -> None:
    """Export each graph. For a GPU, compile each graph and delete its file: the engine holds the weights."""
    checkpoint, config, options = plan.checkpoint, plan.config, plan.options
    folder, precision, capacity = steps.folder, options.precision, config.temporal.capacity
    start = partial(_started, plan, progress)
    for name, spec in graph_specs(config, precision).items():
        graph, engine = folder / f"{name}.onnx", folder / f"{name}.engine"
        if engine.name not in steps.done:
            given = (name, checkpoint, config, folder, precision, calibration, start(name))
            export = partial(export_graph, *given, compiled=options.compiled, forms=plan.forms)
            steps.once(name, export)
        if config.kv_cache == INT8 and name == "temporal" and precision[name] != "bf16":  # processors do not run bf16
            write = partial(write_processor_graph, graph, config.temporal, folder / processor_file(name))
            steps.once(processor_file(name), write)
        if options.gpu is not None:
            start(f"{name} for sm_{options.gpu.sm}")
            compiled = partial(
                compile_engine, graph, spec, capacity, options.gpu, options.slots, engine, options.engine
            )
            steps.once(engine.name, compiled)
            steps.remove(name)


def _identity(plan: BuildPlan) -> str:
    """Fingerprint of a build: an interrupted build resumes only if it matches."""
    checkpoint, options = plan.checkpoint, plan.options
    files = [path.resolve() for path in checkpoint.layout.files.values()]
    files += [] if checkpoint.lora is None else [checkpoint.lora.path.resolve()]
    if options.calibration not in (None, DEFAULT_CALIBRATION):
        given = Path(options.calibration).resolve()
        files += [given] if is_file(given) else files_below(given)
    library = "" if options.gpu is None else str(open_library(options.gpu))
    parts = [
        _made_by(),
        _made_with(),
        library,
        repr(plan.config),
        repr(options),
        repr(plan.mixing),
        repr(checkpoint.lora),
    ]
    parts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _made_by() -> str:
    return f"pplex-export {version('pplex-export')}"


def _made_with() -> str:
    return f"torch {version('torch')}"


def _manifest(folder: Path, source: CheckpointSource, plan: BuildPlan, voices: list[str]) -> dict[str, Any]:
    checkpoint, calibration = plan.checkpoint, folder / CALIBRATION_FILE
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
            "files": {name: file_sha256(path) for name, path in checkpoint.layout.files.items()},
            "lora": _lora(checkpoint.lora),
        },
        "config": plan.config.to_dict(),
        "precision": dict(plan.options.precision),
        "choice": None if plan.choice is None else plan.choice.to_dict(),
        "calibration": dict(Calibration.load(calibration, plan.config, weights_mark(checkpoint)).source)
        if plan.calibrated
        else None,
        "engines": {name: _engine(name, folder, plan.options) for name in GRAPH_NAMES},
        "voices": voices,
        "parity": dict(NOT_CHECKED),
        "files": files,
    }


def _lora(lora: Lora | None) -> dict[str, Any] | None:
    if lora is None:
        return None
    return {"file": lora.path.name, "sha256": file_sha256(lora.path), "rank": lora.rank, "scaling": lora.scaling}


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(manifest))


def _engine(graph: str, folder: Path, options: BuildOptions) -> dict[str, Any]:
    """The manifest's entry for a graph."""
    if options.gpu is None:
        none = dict.fromkeys(("gpu", "sm", "slots"))
        return {"kind": ONNXRUNTIME, "file": f"{graph}.onnx", **none, "made_with": _made_with()}
    return engine_entry(folder / f"{graph}.engine", options.gpu, options.slots)


def check_target(out: Path) -> None:
    """Raise BuildError if `out` exists and is not a bundle."""
    if not may_take(out, is_bundle):
        raise BuildError(
            f"{out} exists and is not a bundle, so it is not overwritten. Choose another --out, or remove it."
        )


def _check_space(folder: Path, plan: BuildPlan) -> None:
    nbytes = plan.disk_nbytes
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if free < nbytes:
        raise BuildError(
            f"The build needs {nbytes / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free. Free some space, "
            "choose an --out on another disk, or a --precision of fewer bits."
        )
