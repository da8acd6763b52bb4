"""A checkpoint in the hub's layout: its files, its required tensors, and a reader for one tensor at a time.

Called by `export`, `bench`, `validate` and `doctor`. docs/checkpoints.md lists the layouts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pplex.export.foreign import check_native
from pplex.export.layout import (
    ADAPTER_FILE,
    LM_FILE,
    MIMI_FILE,
    REQUIRED_FILES,
    TEXT_TOKENIZER_FILE,
    VOICES_FILE,
    Layout,
    find_layout,
)
from pplex.export.lora import Lora, merge, read_lora
from pplex.export.stored import Row, read_header, stored_weights, united
from pplex.export.tensor_tables import Shapes, depth_embedding, lm_tensors, mimi_tensors
from pplex.export.tensors import Source
from pplex.measure.tables import aligned
from pplex.runtime.config import CODEBOOKS, MOSHI, PERSONAPLEX, ModelConfig
from pplex.runtime.config_file import CONFIG_FILE, LORA_NAME, ConfigFile, read_config
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import check_readable, is_file

__all__ = ["CONFIG_FILE", "LM_FILE", "MIMI_FILE", "REQUIRED_FILES", "TEXT_TOKENIZER_FILE", "VOICES_FILE", "Checkpoint",
           "open_checkpoint"]  # fmt: skip


SHOWN = 30  # tensors in a message


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors fit its configuration; `read` gives a tensor by its key in PersonaPlex's files."""

    config: ModelConfig
    depth_sets: int
    tensors: Mapping[str, Source]
    layout: Layout
    lora: Lora | None = None

    def read(self, key: str, part: int = 0, parts: int = 1) -> Tensor:
        """One tensor, or one of `parts` equal parts of its rows, in the stored dtype, or in float32 if computed."""
        source = self.tensors[key]
        height = source.shape[0] // parts
        return source.rows(part * height, (part + 1) * height)

    @property
    def folder(self) -> Path:
        return self.layout.folder

    @property
    def tokenizer(self) -> Path:
        return self.layout.tokenizer


def open_checkpoint(folder: Path, lora: Path | None = None, lora_scaling: float | None = None) -> Checkpoint:
    """Open the checkpoint in `folder`, with the changes of an adapter if `lora` names one.

    Raises CheckpointError that lists all missing files or wrong tensors, ConfigError for another model's config.json, and
    AccessError that lists all files without read permission.
    """
    check_readable(folder / CONFIG_FILE)
    described = read_config(folder / CONFIG_FILE)
    layout = find_layout(folder, described.names)
    if described.lora and lora is None:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says lora: true, so the weights need their adapter. Name it: "
            f"--lora {folder / described.names.get(LORA_NAME, ADAPTER_FILE)}"
        )
    weights, codec = _read(layout, described, lora)
    depth_sets = _depth_sets(weights)
    is_moshi = _family(described, depth_sets, layout) == MOSHI
    config = described.config.as_moshi() if is_moshi else described.config
    if lora is None:
        return Checkpoint(config, depth_sets, {**weights, **codec}, layout)
    adapter, changes = read_lora(lora, lora_scaling)
    return Checkpoint(config, depth_sets, {**merge(weights, adapter, changes, depth_sets), **codec}, layout, adapter)


def _read(layout: Layout, described: ConfigFile, lora: Path | None) -> tuple[dict[str, Source], dict[str, Source]]:
    """The tensors of the language model and of the codec, which fit the configuration."""
    stored, config = stored_weights(layout), described.config
    check_native(stored, layout.weights_name)
    weights, codec = united(stored, layout.weights_name), united(read_header(layout.codec), layout.name(layout.codec))
    expected = _expected(config, _depth_sets(weights.sources), weights.sources)
    problems = [*weights.problems, *_differences(layout.weights_name, weights.sources, expected), *codec.problems]
    problems += _differences(layout.name(layout.codec), codec.sources, mimi_tensors(config))
    if problems:
        raise CheckpointError(_table(layout.folder, problems))
    _check_quantized(layout, described, any(tensor.dtype == "I8" for tensor in stored.values()), lora)
    return weights.sources, codec.sources


def _depth_sets(keys: Iterable[str]) -> int:
    """8 if the file has no step above 7, otherwise 16. The reference's loader copies steps 0-7 of 8 sets to 8-15."""
    steps = [int(m[1]) for m in (re.match(r"linears\.(\d+)\.", key) for key in keys) if m]
    return CODEBOOKS if steps and max(steps) < CODEBOOKS else 2 * CODEBOOKS


def _expected(config: ModelConfig, depth_sets: int, keys: Mapping[str, Source]) -> Shapes:
    expected = lm_tensors(config, depth_sets)
    if depth_embedding(depth_sets - 1) in keys:
        # Only with 8 sets: step 8 has its own table for codebook 7; its other weights are those of step 0.
        expected[depth_embedding(depth_sets - 1)] = expected[depth_embedding(0)]
    return expected


def _family(described: ConfigFile, depth_sets: int, layout: Layout) -> str:
    """What config.json says; otherwise, Moshi has 8 depth sets and no voices."""
    return described.model_type or (PERSONAPLEX if depth_sets > CODEBOOKS or layout.voices else MOSHI)


def _check_quantized(layout: Layout, described: ConfigFile, quantized: bool, lora: Path | None) -> None:
    if described.quantized and not quantized:
        raise CheckpointError(
            f"{layout.folder / CONFIG_FILE} says quantize: true, but {layout.weights_name} holds no int8 weights with "
            "scales.\n"
            "Use kyutai's file model.q8.safetensors, or remove quantize from config.json if the weights are not quantized."
        )
    if quantized and lora is not None:
        raise CheckpointError(
            f"{layout.weights_name} is quantized, and {lora} was trained on weights that are not.\n"
            "Name the base model that is not quantized."
        )


def _differences(file: str, found: Mapping[str, Source], expected: Shapes) -> list[Row]:
    rows = [(file, key, str(expected[key]), "missing") for key in expected if key not in found]
    rows += [(file, key, "no such tensor", str(found[key].shape)) for key in found if key not in expected]
    shared = (key for key in expected if key in found)
    rows += [
        (file, key, str(expected[key]), str(found[key].shape)) for key in shared if expected[key] != found[key].shape
    ]
    return rows


def _table(folder: Path, rows: list[Row]) -> str:
    table = aligned([("file", "tensor", "expected", "found"), *rows[:SHOWN]])
    more = f"\nand {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    advice = f"Check {CONFIG_FILE}, or download the checkpoint again."
    if not is_file(folder / CONFIG_FILE):
        advice = f"Without {CONFIG_FILE} the sizes are those of the released models. For other sizes, add that file."
    return f"{folder} does not fit its configuration ({len(rows)} tensors):\n{table}{more}\n{advice}"
