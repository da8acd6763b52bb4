"""Writes the trained codec and language model in the hub's layout. Called by trained.py."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from trained_codec import Codec
from trained_codes import Numbers
from trained_corpus import shifted
from trained_language import Language
from trained_sizes import ARGUMENTS

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, VOICES_FILE, Checkpoint
from pplex.export.layers import Linear
from pplex.export.layout import NO_FILES
from pplex.export.tensor_tables import lm_tensors, mimi_tensors
from pplex.export.tensors import Stored
from pplex.export.weights import sources
from pplex.runtime.arrays import Tokens
from pplex.runtime.config import CODEBOOKS, MIMI_PARTS, RELEASED_ARGUMENTS, ModelConfig

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Held:
    """A tensor of a checkpoint in memory."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop]

    def stored(self) -> Iterator[Stored]:
        return iter(())


def in_memory(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Checkpoint:
    held = {key: Held(tensor) for key, tensor in tensors.items()}
    return Checkpoint(config, config.stored_depth_sets, held, NO_FILES)


def codec_tensors(codec: Codec, numbers: Numbers) -> Tensors:
    """Every tensor of the codec's file, in float32 with the digits of bfloat16, so that the file can be packed."""
    shapes = mimi_tensors(codec.config)
    blank = in_memory(codec.config, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    tensors: Tensors = {}
    for graph, module in (("mimi_encode", codec.encoder), ("mimi_decode", codec.decoder)):
        tensors |= _stored(graph, module, blank)
    books = [key.removesuffix(".embedding_sum") for key in shapes if key.endswith("embedding_sum")]
    for k, key in enumerate(books):
        tensors[f"{key}.embedding_sum"] = numbers.book(k, codec.books.entries[k])
        tensors[f"{key}.cluster_usage"] = torch.ones(numbers.card)
        tensors[f"{key}._initialized"] = torch.ones(1)
    return {key: tensors[key].to(torch.bfloat16).float().reshape(shape).contiguous() for key, shape in shapes.items()}


def language_tensors(model: Language, config: ModelConfig, numbers: Numbers) -> Tensors:
    """Every tensor of the language model's file in bfloat16, with the rows of all codes."""
    shapes = lm_tensors(config, CODEBOOKS)
    small = {key: torch.empty(shape, device="meta") for key, shape in lm_tensors(model.config, CODEBOOKS).items()}
    blank = in_memory(model.config, small)
    tensors = _stored("temporal", model.temporal, blank) | _stored("depth", model.depth, blank)
    for key in shapes:
        name, *rest = key.split(".")
        if name == "emb" or name == "depformer_emb":
            tensors[key] = numbers.table(int(rest[0]) % CODEBOOKS, tensors[key])
        if name == "linears":
            tensors[key] = numbers.head(int(rest[0]), tensors[key])
    return {key: tensors[key].to(torch.bfloat16).reshape(shape).contiguous() for key, shape in shapes.items()}


@torch.no_grad()
def _stored(graph: str, module: nn.Module, blank: Checkpoint) -> Tensors:
    """A module's parameters under their keys: the reverse of `weights.sources`."""
    parts: dict[str, list[Tensor]] = {}
    for name, source in sources(graph, blank.config, blank).items():
        if "codebooks" in name:
            continue
        owner = module.get_submodule(name.rpartition(".")[0])
        weight = module.get_parameter(name).detach()
        weight = weight.t() if isinstance(owner, Linear) else weight
        for key, piece in zip(source.keys, weight.chunk(len(source.keys)), strict=True):
            parts.setdefault(key, []).append(piece)  # depth steps come in order
    return {key: torch.cat(pieces) for key, pieces in parts.items()}


def write_config(folder: Path) -> None:
    arguments = {part: {**released, **ARGUMENTS[part]} for part, released in RELEASED_ARGUMENTS.items()}
    data = {"model_type": "personaplex", "lm": arguments["lm"], "mimi": {part: arguments[part] for part in MIMI_PARTS}}
    (folder / CONFIG_FILE).write_text(json.dumps(data, indent=2))


def write_language(folder: Path, tensors: Tensors, config: ModelConfig, voices: Mapping[str, Tokens]) -> None:
    """The language model's file, and the voices of frames [V, 17]."""
    save_file(tensors, folder / LM_FILE)
    with gzip.GzipFile(folder / VOICES_FILE, "wb", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, frames in voices.items():
            data = io.BytesIO()
            torch.save(_voice(tensors, config, frames), data)
            entry = tarfile.TarInfo(f"voices/{name}.pt")
            entry.size = data.tell()
            data.seek(0)
            archive.addfile(entry, data)


def _voice(tensors: Tensors, config: ModelConfig, frames: Tokens) -> Tensors:
    """Embeddings [V, 1, 1, dim] of the columns of a voice's frames, and the token ring after them, [1, 17, 4]."""
    columns = shifted(config, np.concatenate([frames, frames[-1:]]))  # [V + 2, 17]; the last has the delayed codes
    tables = [tensors["text_emb.weight"], *(tensors[f"emb.{i}.weight"] for i in range(2 * CODEBOOKS))]
    codes = torch.from_numpy(columns)
    used = codes[: len(frames)]
    total = torch.stack([table.float()[used[:, k]] for k, table in enumerate(tables)]).sum(0)
    ring = config.max_delay + 3
    cache = torch.stack([codes[c] for c in range(len(codes) - ring, len(codes))])
    order = [c % ring for c in range(len(codes) - ring, len(codes))]
    placed = torch.empty_like(cache)
    placed[order] = cache
    return {"embeddings": total.to(torch.bfloat16)[:, None, None].clone(), "cache": placed.t()[None].contiguous()}
