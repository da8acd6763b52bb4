"""A checkpoint in the hub's layout: its files, its required tensors, and a reader for one tensor at a time.

Called by `export`, `bench`, `validate` and `doctor`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pplex.measure.tables import aligned
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import check_readable, is_file
from pplex.runtime.graphs import Conv, downsample, seanet_decoder, seanet_encoder, upsample

CONFIG_FILE = "config.json"
LM_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TEXT_TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
VOICES_FILE = "voices.tgz"
REQUIRED_FILES = (LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE, VOICES_FILE)

Shapes = dict[str, tuple[int, ...]]


def lm_tensors(config: ModelConfig, depth_sets: int) -> Shapes:
    """Every key of the language model's file and its shape, with 8 or 16 sets of depth weights (one set for a step)."""
    temporal, depth, audio_streams = config.temporal, config.depth, config.num_streams - 1
    shapes: Shapes = {"text_emb.weight": (config.text_card + 1, temporal.dim)}
    shapes |= {f"emb.{i}.weight": (config.audio_card + 1, temporal.dim) for i in range(audio_streams)}
    for i in range(temporal.layers):
        shapes |= _block(f"transformer.layers.{i}", temporal.dim, sets=1)
        shapes |= _gating(f"transformer.layers.{i}.gating", temporal.dim, temporal.hidden)
    shapes["out_norm.alpha"] = (1, 1, temporal.dim)
    shapes["text_linear.weight"] = (config.text_card, temporal.dim)
    shapes["depformer_text_emb.weight"] = (config.text_card + 1, depth.dim)
    for k in range(depth_sets - 1):
        shapes[depth_embedding(k)] = (config.audio_card + 1, depth.dim)
    shapes |= {f"depformer_in.{k}.weight": (depth.dim, temporal.dim) for k in range(depth_sets)}
    shapes |= {f"linears.{k}.weight": (config.audio_card, depth.dim) for k in range(depth_sets)}
    for i in range(depth.layers):
        shapes |= _block(f"depformer.layers.{i}", depth.dim, sets=depth_sets)
        for k in range(depth_sets):
            shapes |= _gating(f"depformer.layers.{i}.gating.{k}", depth.dim, depth.hidden)
    return shapes


def depth_embedding(k: int) -> str:
    """Key of the table that embeds codebook k for depth step k + 1."""
    return f"depformer_emb.{k}.weight"


def _block(key: str, dim: int, sets: int) -> Shapes:
    return {
        f"{key}.norm1.alpha": (1, 1, dim),
        f"{key}.norm2.alpha": (1, 1, dim),
        f"{key}.self_attn.in_proj_weight": (sets * 3 * dim, dim),
        f"{key}.self_attn.out_proj.weight": (sets * dim, dim),
    }


def _gating(key: str, dim: int, hidden: int) -> Shapes:
    return {f"{key}.linear_in.weight": (2 * hidden, dim), f"{key}.linear_out.weight": (dim, hidden)}


def mimi_tensors(config: ModelConfig) -> Shapes:
    """Every key of the codec's file and its shape."""
    mimi, shapes = config.mimi, Shapes()
    convs = (*seanet_encoder(mimi).convs(), *seanet_decoder(mimi).convs(), downsample(mimi), upsample(mimi))
    for conv in convs:
        shapes |= _conv(conv)
    for side in ("encoder", "decoder"):
        for i in range(mimi.transformer.layers):
            shapes |= _codec_layer(f"{side}_transformer.transformer.layers.{i}", mimi.dim, mimi.transformer.hidden)
    for part, books in (("rvq_first", 1), ("rvq_rest", mimi.stored_codebooks - 1)):
        shapes[f"quantizer.{part}.input_proj.weight"] = (mimi.codebook_dim, mimi.dim, 1)
        shapes[f"quantizer.{part}.output_proj.weight"] = (mimi.dim, mimi.codebook_dim, 1)
        for i in range(books):
            key = f"quantizer.{part}.vq.layers.{i}._codebook"
            shapes[f"{key}._initialized"] = (1,)
            shapes[f"{key}.cluster_usage"] = (mimi.codebook_size,)
            shapes[f"{key}.embedding_sum"] = (mimi.codebook_size, mimi.codebook_dim)
    return shapes


def _conv(conv: Conv) -> Shapes:
    inputs, outputs = (
        (conv.inputs, 1 if conv.depthwise else conv.outputs) if conv.transposed else (conv.outputs, conv.inputs)
    )
    shapes: Shapes = {f"{conv.key}.weight": (inputs, outputs, conv.kernel)}
    if conv.bias:
        shapes[f"{conv.key}.bias"] = (conv.outputs,)
    return shapes


def _codec_layer(key: str, dim: int, hidden: int) -> Shapes:
    return {
        **{f"{key}.norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")},
        **{f"{key}.layer_scale_{n}.scale": (dim,) for n in (1, 2)},
        f"{key}.self_attn.in_proj_weight": (3 * dim, dim),
        f"{key}.self_attn.out_proj.weight": (dim, dim),
        f"{key}.linear1.weight": (hidden, dim),
        f"{key}.linear2.weight": (dim, hidden),
    }


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file that is opened again for each tensor.

    An open file is mapped into memory, and each page read counts as memory of this process: 17 GB for a 17 GB checkpoint.
    """

    path: Path

    def get_tensor(self, key: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors fit its configuration; `read` gives a tensor by its key."""

    folder: Path
    config: ModelConfig
    depth_sets: int
    files: Mapping[str, Any]  # tensor key -> TensorFile

    def read(self, key: str) -> Tensor:
        """One tensor, in its stored dtype and shape."""
        tensor: Tensor = self.files[key].get_tensor(key)
        return tensor

    def path(self, name: str) -> Path:
        return self.folder / name


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder`. Raises CheckpointError that lists all missing files or wrong tensors.

    Raises AccessError that lists all files without read permission.
    """
    missing = [name for name in REQUIRED_FILES if not is_file(folder / name)]
    if missing:
        raise CheckpointError(
            f"{folder} is not a checkpoint: it lacks {', '.join(missing)}.\n"
            "Name a folder with the files of nvidia/personaplex-7b-v1, a hub repository, or make one: pplex-export synth OUT"
        )
    check_readable(*(folder / name for name in (CONFIG_FILE, *REQUIRED_FILES)))
    config = ModelConfig.from_checkpoint(folder / CONFIG_FILE)
    with _open(folder / LM_FILE) as lm, _open(folder / MIMI_FILE) as mimi:
        depth_sets = _depth_sets(lm, config)
        expected = lm_tensors(config, depth_sets)
        if depth_embedding(depth_sets - 1) in lm.keys():  # noqa: SIM118 (not a dict)
            # Only with 8 sets: step 8 has its own table for codebook 7; its other weights are those of step 0.
            expected[depth_embedding(depth_sets - 1)] = expected[depth_embedding(0)]
        problems = _differences(LM_FILE, lm, expected)
        problems += _differences(MIMI_FILE, mimi, mimi_tensors(config))
        if problems:
            raise CheckpointError(_table(folder, problems))
        files = dict.fromkeys(lm.keys(), TensorFile(folder / LM_FILE))
        files |= dict.fromkeys(mimi.keys(), TensorFile(folder / MIMI_FILE))
    return Checkpoint(folder, config, depth_sets, files)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file: {error}\nDownload or copy it again."
        ) from error
    with file:
        yield file


def _depth_sets(lm: Any, config: ModelConfig) -> int:
    """8 if the file has no step above 7, otherwise 16. The reference's loader copies steps 0-7 of 8 sets to 8-15."""
    steps = [int(m[1]) for m in (re.match(r"linears\.(\d+)\.", key) for key in lm.keys()) if m]  # noqa: SIM118
    return CODEBOOKS if steps and max(steps) < CODEBOOKS else config.stored_depth_sets


def _differences(file_name: str, file: Any, expected: Shapes) -> list[tuple[str, str, str, str]]:
    found: Shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    rows = [(file_name, key, str(expected[key]), "missing") for key in expected if key not in found]
    rows += [(file_name, key, "no such tensor", str(found[key])) for key in found if key not in expected]
    shared = (key for key in expected if key in found)
    rows += [(file_name, key, str(expected[key]), str(found[key])) for key in shared if expected[key] != found[key]]
    return rows


def _table(folder: Path, rows: list[tuple[str, str, str, str]]) -> str:
    header = ("file", "tensor", "expected", "found")
    return (
        f"{folder} does not fit its configuration ({len(rows)} tensors):\n{aligned([header, *rows])}\n"
        f"Check {CONFIG_FILE}, or download the checkpoint again."
    )
