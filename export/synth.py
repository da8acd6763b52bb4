"""A random checkpoint in the hub's layout, for tests, demos and benchmarks: called by `pplex-export synth`.

Its weights are random, but it behaves like a model:

- activations keep their scale through every layer
- other sound gives other codes
- codes decode to audible sound
- the logits prefer some tokens, but not always the same one
"""

import gzip
import io
import json
import math
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from pplex.export.checkpoint import (
    CONFIG_FILE,
    LM_FILE,
    MIMI_FILE,
    TEXT_TOKENIZER_FILE,
    VOICES_FILE,
)
from pplex.export.staging import whole_folder
from pplex.export.synth_codec import write_codec
from pplex.export.synth_outliers import Outliers
from pplex.export.synth_tensors import Array, Progress, ahead, generator, write_tensors
from pplex.export.synth_tokenizer import write_tokenizer
from pplex.export.tensor_tables import Shapes, lm_tensors, mimi_tensors
from pplex.runtime.config import CODEBOOKS, MIMI_PARTS, RELEASED_ARGUMENTS, SINE_CODES, ModelConfig
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import is_folder


@dataclass(frozen=True)
class Size:
    """A named size: the arguments that differ from the released model's, and a voice's length."""

    arguments: dict[str, dict[str, Any]]
    voice_frames: int


TINY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "lm": {
        "dim": 32, "text_card": 1000, "num_heads": 2, "num_layers": 3, "context": 256, "depformer_dim": 16,
        "depformer_dim_feedforward": 66, "depformer_num_heads": 2, "depformer_num_layers": 2,
    },
    "seanet": {"dimension": 32, "n_filters": 4},
    "transformer": {
        "d_model": 32, "num_heads": 2, "num_layers": 2, "context": 24, "dim_feedforward": 64, "input_dimension": 32,
        "output_dimensions": [32],
    },
    "quantizer": {"dimension": 16, "n_q": 8, "input_dimension": 32, "output_dimension": 32},
}  # fmt: skip

# Wide enough to show the loss from quantization, and small enough to compare all precisions in minutes.
SMALL_ARGUMENTS: dict[str, dict[str, Any]] = {
    **TINY_ARGUMENTS,
    "lm": {
        "dim": 1024, "text_card": 8000, "num_heads": 16, "num_layers": 8, "context": 512, "depformer_dim": 256,
        "depformer_dim_feedforward": 1056, "depformer_num_heads": 4, "depformer_num_layers": 4,
    },
}  # fmt: skip

# The released widths and heads, so that libraries choose the released model's kernels, and two layers of each transformer.
WIDE_ARGUMENTS: dict[str, dict[str, Any]] = {**TINY_ARGUMENTS, "lm": {"num_layers": 2, "depformer_num_layers": 2}}

SIZES = {
    "tiny": Size(TINY_ARGUMENTS, voice_frames=29),
    "small": Size(SMALL_ARGUMENTS, voice_frames=29),
    "wide": Size(WIDE_ARGUMENTS, voice_frames=29),
    "full": Size({}, voice_frames=50),
}

VOICE_NAMES = (*(f"NAT{sex}{i}" for sex in "FM" for i in range(4)), *(f"VAR{sex}{i}" for sex in "FM" for i in range(5)))

# A matrix of gain 1 keeps the standard deviation of its input. With these gains 32 layers multiply a rounding error by
# 2.5 (by 10 if all gains were 1.5). One wrong entry in a ring of 90 moves the hidden state by 8 %, so a mistake shows.
GAIN, EMBEDDING_STD = 1.0, 0.5
LM_GAINS = {"in_proj": 1.3, "out_proj": 0.8, "text_linear": 3.0, "linears": 1.5}
NORM_STD = 0.1

PIECE = 1 << 22  # numbers drawn in one job


def synthesize(
    out: Path,
    size: str,
    seed: int = 0,
    progress: Progress | None = None,
    depth_sets: int = 2 * CODEBOOKS,
    outliers: bool = False,
) -> Path:
    """Write a random checkpoint of `size` (a name in SIZES) into the folder `out` and return `out`.

    The same seed gives the same bytes. `outliers` adds heavy channels: see `synth_outliers`. `progress` gets the bytes
    written since its last call; their sum is `checkpoint_nbytes`.
    Raises CheckpointError for another size or number of depth sets, a folder that is not empty, or too little disk space.
    """
    progress = progress or (lambda nbytes: None)
    needed = checkpoint_nbytes(size, depth_sets)
    _check_folder(out, needed)
    with whole_folder(out, lambda path: False) as folder:
        config = _config(size)
        _write_config(folder, size)
        write_tokenizer(folder / TEXT_TOKENIZER_FILE, config.text_card)
        write_codec(folder / MIMI_FILE, config, seed, progress)
        heavy = Outliers.drawn(config.temporal.dim, seed) if outliers else None
        pieces = _lm_pieces(lm_tensors(config, depth_sets), seed, heavy)
        write_tensors(folder / LM_FILE, "BF16", lm_tensors(config, depth_sets), ahead(pieces), progress)
        _write_voices(folder, config, SIZES[size].voice_frames, seed)
    return out


def checkpoint_nbytes(size: str, depth_sets: int = 2 * CODEBOOKS) -> int:
    """Bytes of all tensors of a checkpoint. `progress` counts these; the other files are small."""
    if size not in SIZES or depth_sets not in (CODEBOOKS, 2 * CODEBOOKS):
        raise CheckpointError(
            f"Cannot make a checkpoint of size {size!r} with {depth_sets} depth sets.\n"
            f"Choose one of {', '.join(SIZES)}, with {CODEBOOKS} or {2 * CODEBOOKS} depth sets."
        )
    config = _config(size)
    return 2 * _numbers(lm_tensors(config, depth_sets)) + 4 * _numbers(mimi_tensors(config))


def _numbers(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _check_folder(out: Path, nbytes: int) -> None:
    if os.path.exists(out) and (not is_folder(out) or any(out.iterdir())):
        raise CheckpointError(
            f"{out} exists and is not an empty folder.\nChoose a new folder, or remove this one first."
        )
    parent = next(path for path in out.absolute().parents if os.path.exists(path))
    if not is_folder(parent):
        raise CheckpointError(f"{out} cannot be created: {parent} is a file.\nChoose another folder.")
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise CheckpointError(
            f"The checkpoint needs {nbytes / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} GB free.\n"
            "Free some space, or choose a folder on another disk."
        )


def _config(size: str) -> ModelConfig:
    arguments = SIZES[size].arguments
    return ModelConfig.from_arguments(arguments.get("lm", {}), {p: arguments[p] for p in MIMI_PARTS if p in arguments})


def _write_config(folder: Path, size: str) -> None:
    """Write config.json: for "full" as bare as the released one, for other sizes with all arguments."""
    data: dict[str, Any] = {"model_type": "personaplex"}
    if changed := SIZES[size].arguments:
        arguments = {part: {**released, **changed[part]} for part, released in RELEASED_ARGUMENTS.items()}
        data |= {"lm": arguments["lm"], "mimi": {part: arguments[part] for part in MIMI_PARTS}}
    (folder / CONFIG_FILE).write_text(json.dumps(data, indent=2))


def _lm_pieces(shapes: Shapes, seed: int, outliers: Outliers | None) -> Iterator[Callable[[], Array]]:
    """Jobs that draw the file's data in order and in pieces, so that no large tensor is complete in memory."""
    for key, shape in shapes.items():
        table, count = _table(*_lm_moments(key, shape)), math.prod(shape)
        for start in range(0, count, PIECE):
            yield partial(_drawn, table, seed, key, shape, start, min(PIECE, count - start), outliers)


@cache
def _table(mean: float, std: float) -> Array:
    """The 65536 quantiles of a normal distribution in bfloat16, as int16.

    It is four times as fast to pick a quantile with 16 random bits as to draw a float32 number and round it.
    """
    quantiles = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    table: Array = (mean + std * quantiles).to(torch.bfloat16).view(torch.int16).numpy()
    return table


def _drawn(
    table: Array, seed: int, key: str, shape: tuple[int, ...], start: int, count: int, outliers: Outliers | None
) -> Array:
    picks = generator(seed, f"{key}/{start}").integers(len(table), size=count, dtype=np.uint16)
    # All indices are in range. "wrap" is the fastest mode, and it releases the GIL.
    piece = table.take(picks, mode="wrap")
    if outliers is not None:
        outliers.plant(piece, key, shape, start)
    return piece


def _lm_moments(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's numbers."""
    if key.endswith("alpha"):
        return 1.0, NORM_STD
    if re.search(r"(^|_)emb\.", key):
        return 0.0, EMBEDDING_STD
    gain = next((gain for part, gain in LM_GAINS.items() if part in key), GAIN)
    return 0.0, gain / math.sqrt(shape[-1])


def _write_voices(folder: Path, config: ModelConfig, frames: int, seed: int) -> None:
    """voices.tgz: a pickle of `embeddings` [T, 1, 1, dim] bfloat16 and `cache` [1, 17, 4] int64 for every voice."""
    codes = torch.stack([_voice_codes(config, frames, seed, name) for name in VOICE_NAMES])  # [V, T, 17]
    embeddings = _embed(folder / LM_FILE, codes)
    # Without a timestamp, the same seed gives the same archive.
    with gzip.GzipFile(folder / VOICES_FILE, "wb", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, embedding, voice in zip(VOICE_NAMES, embeddings, codes, strict=True):
            _add(
                archive,
                f"voices/{name}.pt",
                {"embeddings": embedding[:, None, None].clone(), "cache": _ring(voice, config.max_delay + 3)},
            )


def _voice_codes(config: ModelConfig, frames: int, seed: int, name: str) -> Tensor:
    """Random codes for the agent, padding for the text, and the tone of priming for the user: [T, 17]."""
    agent = generator(seed, f"voices/{name}").integers(config.audio_card, size=(frames, CODEBOOKS))
    text, user = np.full((frames, 1), config.text_padding), np.tile(SINE_CODES, (frames, 1))
    return torch.from_numpy(np.concatenate([text, agent, user], 1))


def _embed(lm: Path, codes: Tensor) -> Tensor:
    """The sum of the language model's embeddings of codes [V, T, 17]: [V, T, dim] bfloat16."""
    tables = ["text_emb.weight", *(f"emb.{i}.weight" for i in range(codes.shape[-1] - 1))]
    total = torch.zeros(())
    with safe_open(lm, framework="pt") as file:
        for i, table in enumerate(tables):
            total = total + file.get_tensor(table)[codes[..., i]].float()
    return total.to(torch.bfloat16)


def _ring(codes: Tensor, columns: int) -> Tensor:
    """The token ring after codes [T, 17]: step t is in column t mod `columns`. [1, 17, columns], 4 as released."""
    return codes[-columns:].roll(len(codes) % columns, dims=0).t()[None].contiguous()


def _add(archive: tarfile.TarFile, name: str, voice: dict[str, Tensor]) -> None:
    data = io.BytesIO()
    torch.save(voice, data)
    entry = tarfile.TarInfo(name)
    entry.size = data.tell()
    data.seek(0)
    archive.addfile(entry, data)
