"""From a checkpoint to a bundle: written to a folder beside the target and renamed when whole."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pplex.export import graph, weights
from pplex.export.checkpoint import REQUIRED_FILES, TEXT_TOKENIZER_FILE, Checkpoint, open_checkpoint
from pplex.export.checkpoint import VOICES_FILE as VOICES_ARCHIVE
from pplex.export.source import Source
from pplex.export.staging import LOCK_FILE, may_take, whole_folder
from pplex.export.voices import read_voices, write_voices
from pplex.runtime.bundle import (
    MANIFEST_FILE,
    SCHEMA,
    TOKENIZER_FILE,
    VOICES_FILE,
    file_sha256,
    is_bundle,
    manifest_digest,
    open_bundle,
)
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.errors import BuildError
from pplex.runtime.graphs import graph_specs
from pplex.runtime.text import Tokenizer

# What is being done, the bytes of weights written since the last call, and those to be written in all.
Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def build(source: Source, out: Path, depth_steps: int = CODEBOOKS, progress: Progress = _silent) -> Path:
    """Export a checkpoint's four graphs with tokenizer and voices into the bundle `out`; returns `out`.

    An existing bundle is replaced in one rename once the new one is whole and opens. Weights are read and written tensor
    by tensor. Raises CheckpointError for an unfit checkpoint, BuildError or OutputError
    for a graph or a target that cannot be written.
    """
    _check_target(out)
    with open_checkpoint(source.folder) as checkpoint, whole_folder(out, is_bundle) as folder:
        config = replace(checkpoint.config, depth_steps=depth_steps)
        total = weights_nbytes(config)
        _check_space(folder, total)
        # The small parts first: what is wrong with them is known before the long work.
        voices = read_voices(checkpoint.path(VOICES_ARCHIVE), config)
        write_voices(voices, folder / VOICES_FILE)
        shutil.copyfile(checkpoint.path(TEXT_TOKENIZER_FILE), folder / TOKENIZER_FILE)
        Tokenizer(folder / TOKENIZER_FILE)
        graphs = {name: export_graph(name, checkpoint, config, folder, progress) for name in graph_specs(config)}
        progress("hash", 0, total)
        _write_manifest(folder, source, checkpoint, config, graphs, sorted(voices))
        open_bundle(folder, verify=False)
    return out


def weights_nbytes(config: ModelConfig) -> int:
    """Bytes of weights the graphs will hold."""
    tables = (weights.shapes(name, config) for name in graph_specs(config))
    return sum(4 * shape.numel() for table in tables for shape in table.values())


def export_graph(
    name: str, checkpoint: Checkpoint, config: ModelConfig, folder: Path, progress: Progress = _silent
) -> Path:
    """Trace one graph and write it to `folder` with its weights; returns the ONNX file."""
    total = weights_nbytes(config)
    progress(name, 0, total)
    spec = graph_specs(config)[name]
    model = graph.trace(spec, weights.MODULES[name], config)
    shapes = weights.shapes(name, config)

    def lazy(parameter: str, source: weights.Source) -> Any:
        def read() -> Any:
            tensor = source.read(checkpoint)
            progress(name, tensor.nbytes, total)
            return tensor

        return graph.lazy_weight(parameter, read, tuple(shapes[parameter]))

    table = weights.sources(name, config, checkpoint)
    path = folder / f"{name}.onnx"
    graph.save(model, spec, {parameter: lazy(parameter, source) for parameter, source in table.items()}, path)
    return path


def _write_manifest(
    folder: Path,
    source: Source,
    checkpoint: Checkpoint,
    config: ModelConfig,
    graphs: dict[str, Path],
    voices: list[str],
) -> None:
    files = {
        path.name: {"nbytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != LOCK_FILE
    }
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "made_by": f"pplex-export {version('pplex-export')}",
        "checkpoint": {
            "repo": source.repo,
            "revision": source.revision,
            "files": {name: file_sha256(checkpoint.path(name)) for name in REQUIRED_FILES},
        },
        "config": config.to_dict(),
        "precision": dict.fromkeys(graphs, "fp32"),
        "calibration": None,
        "engines": {
            name: {
                "kind": "onnxruntime",
                "file": path.name,
                "gpu": None,
                "sm": None,
                "slots": None,
                "made_with": f"torch {version('torch')}",
            }
            for name, path in graphs.items()
        },
        "voices": voices,
        "parity": None,
        "files": files,
    }
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def _check_target(out: Path) -> None:
    if not may_take(out, is_bundle):
        raise BuildError(
            f"{out} exists and is not a bundle: it would be overwritten. Choose another --out, or remove it."
        )


def _check_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise BuildError(f"The bundle takes {nbytes / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free.")
