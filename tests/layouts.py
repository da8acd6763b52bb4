"""The tiny checkpoint in other layouts."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from folders import TINY
from safetensors.torch import load_file, save_file
from torch import Tensor

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, VOICES_FILE
from pplex.export.layout import INDEX_FILE, VOICES_FOLDER

INT8 = re.compile(r".*(linear_in|linear_out|self_attn|text_linear|depformer_in|linears).*")  # matrices, not embeddings


def copied(folder: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(TINY / "checkpoint", folder))


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / LM_FILE))


def remove_voices(folder: Path) -> None:
    """The archive, and the folder of the same voices."""
    (folder / VOICES_FILE).unlink()
    shutil.rmtree(folder / VOICES_FOLDER)


def edit_lm(folder: Path, changes: Mapping[str, Tensor | None]) -> None:
    """Replace tensors of the language model's file, or remove them with None."""
    tensors = {**weights_of(folder), **changes}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / LM_FILE)


def write_config(folder: Path, data: object) -> None:
    (folder / CONFIG_FILE).write_text(data if isinstance(data, str) else json.dumps(data))


def read_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / CONFIG_FILE).read_text()))


def halved(tensors: Mapping[str, Tensor], last_table: bool = False) -> dict[str, Tensor]:
    """8 of the 16 depth sets, with or without the table that embeds codebook 7 for step 8."""
    kept = {}
    for key, tensor in tensors.items():
        numbered = re.match(r"(depformer_in|depformer_emb|linears|depformer\.layers\.\d+\.gating)\.(\d+)\.", key)
        last = 7 if last_table or numbered is None or numbered[1] != "depformer_emb" else 6
        if numbered is None or int(numbered[2]) <= last:
            shared = key.startswith("depformer.") and "self_attn" in key
            kept[key] = tensor.chunk(2)[0].contiguous() if shared else tensor
    return kept


def by_step(tensors: Mapping[str, Tensor], sets: int = 16) -> dict[str, Tensor]:
    """Attention's matrices one by one, as the state of moshi's own modules has them."""
    found = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.*self_attn)\.(in|out)_proj[._]weight", key)
        if match is None:
            found[key] = tensor
            continue
        parts = tensor.chunk(sets if key.startswith("depformer.") else 1)
        found |= {f"{match[1]}.{match[2]}_projs.{i}.weight": part.contiguous() for i, part in enumerate(parts)}
    return found


def int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in 8 bits with a scale for each row, as kyutai's q8 files have them."""
    found = {}
    for key, tensor in tensors.items():
        if not INT8.fullmatch(key):
            found[key] = tensor
            continue
        largest = tensor.float().abs().amax(1)
        found[key] = (tensor.float() * 127 / largest[:, None]).round().to(torch.int8)
        found[f"{key}_scb"] = largest
    return found


def shard(folder: Path, count: int = 3) -> dict[str, Any]:
    """Split the language model's file into shards with an index; returns the index."""
    tensors = weights_of(folder)
    (folder / LM_FILE).unlink()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    placed = {key: names[i % count] for i, key in enumerate(sorted(tensors, reverse=True))}
    placed["text_emb.weight"] = names[0]
    for name in names:
        save_file({key: tensor for key, tensor in tensors.items() if placed[key] == name}, folder / name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": placed}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return index


def rename_lm(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as the language model's file under another name."""
    (folder / LM_FILE).unlink()
    save_file(dict(tensors), folder / name)
