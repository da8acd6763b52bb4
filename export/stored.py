"""Turns what files hold into the tensors of PersonaPlex's files: shards, depth steps one by one, int8 with scales. Called by
`export.checkpoint`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pplex.export.layout import Layout, read_weight_map
from pplex.export.tensors import FLOATS, Dequantized, Joined, Source, Stored
from pplex.runtime.errors import CheckpointError

_LFS = b"version https://git-lfs"
_SCALE = "_scb"  # moshi's package adds this to the key of an int8 tensor
_STEP = re.compile(r"(?P<attention>.*self_attn)\.(?P<side>in|out)_projs\.(?P<step>\d+)\.weight")
_UNITED = re.compile(r"(.*self_attn)\.in_proj\.weight")

Row = tuple[str, str, str, str]  # file, tensor, expected, found


@dataclass
class Tensors:
    """Tensors by their keys in PersonaPlex's files, and rows of a table of what is wrong with the stored ones."""

    sources: dict[str, Source]
    problems: list[Row] = field(default_factory=list)


def stored_weights(layout: Layout) -> dict[str, Stored]:
    """Every tensor of the language model's files. Raises CheckpointError for damaged files, and for a wrong index."""
    if layout.index is None:
        return read_header(layout.weights[0])
    listed, found, problems = read_weight_map(layout.index), dict[str, Stored](), list[str]()
    for shard in layout.weights:
        for key, tensor in read_header(shard).items():
            if key in found:
                problems.append(f"{key} is in {found[key].path.name} and in {shard.name}")
            elif listed.get(key) != shard.name:
                problems.append(f"{key} is in {shard.name}, and the index says {listed.get(key, 'nothing about it')}")
            found[key] = tensor
    problems += [f"{key} is not in {shard}" for key, shard in listed.items() if key not in found]
    if problems:
        raise CheckpointError(
            f"{layout.index} does not describe its shards:\n  {_listed(problems)}\nDownload all of them again, "
            "from one commit."
        )
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by its key. Raises CheckpointError for a damaged file."""
    with _open(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return {key: Stored(path, key, tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}


def united(stored: Mapping[str, Stored], file: str) -> Tensors:
    """The tensors under their keys in PersonaPlex's files: with dequantized weights, and the steps of attention joined."""
    tensors = Tensors({})
    single = _dequantized(stored, file, tensors.problems)
    steps: dict[str, dict[int, Source]] = defaultdict(dict)
    for key, source in single.items():
        if match := _STEP.fullmatch(key):
            whole = f"{match['attention']}.{'in_proj_' if match['side'] == 'in' else 'out_proj.'}weight"
            steps[whole][int(match["step"])] = source
        else:
            tensors.sources[_UNITED.sub(r"\1.in_proj_weight", key)] = source
    for key, parts in steps.items():
        if key in tensors.sources:
            tensors.problems.append((file, key, "whole or in steps", "both"))
        tensors.sources[key] = Joined(tuple(parts[step] for step in sorted(parts)))
        tensors.problems += _step_problems(file, key, parts)
    return tensors


def _dequantized(stored: Mapping[str, Stored], file: str, problems: list[Row]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for key, tensor in stored.items():
        scale = stored.get(f"{key}{_SCALE}")
        if tensor.dtype == "I8" and scale is not None:
            found[key] = Dequantized(tensor, scale)
            if len(tensor.shape) != 2 or scale.shape != tensor.shape[:1] or scale.dtype not in FLOATS:
                problems.append((file, scale.key, f"{FLOATS[0]} {tensor.shape[:1]}", f"{scale.dtype} {scale.shape}"))
        elif not key.endswith(_SCALE) or stored.get(key.removesuffix(_SCALE), tensor).dtype != "I8":
            found[key] = tensor
            if tensor.dtype not in FLOATS:
                problems.append((file, key, f"{', '.join(FLOATS)}, or I8 with {key}{_SCALE}", tensor.dtype))
    return found


def _step_problems(file: str, key: str, parts: Mapping[int, Source]) -> Iterator[Row]:
    shape = parts[min(parts)].shape
    for step in range(max(parts) + 1):
        found = parts[step].shape if step in parts else "missing"
        if found != shape:
            yield file, f"{key}, step {step}", str(shape), str(found)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if _starts_with(path, _LFS):
            raise CheckpointError(
                f"{path} is a pointer of Git LFS, not the file. Fetch the file: git lfs pull"
            ) from error
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file: {error}\nDownload or copy it again."
        ) from error
    with file:
        yield file


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _listed(problems: list[str], shown: int = 20) -> str:
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "\n  ".join([*problems[:shown], *more])
