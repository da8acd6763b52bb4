"""A LoRA adapter of moshi-finetune: read, checked against its base, and merged. Called by `export.checkpoint`."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.export.layout import ADAPTER_FILE
from pplex.export.stored import read_header
from pplex.export.tensors import FLOATS, Joined, Merged, Part, Source, Stored
from pplex.measure.tables import aligned
from pplex.runtime.config_file import CONFIG_FILE, read_object
from pplex.runtime.errors import CheckpointError, ConfigError
from pplex.runtime.files import check_readable, is_file, is_folder, is_there

_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PROJECTION = re.compile(r"(?P<attention>.+\.self_attn)\.(?P<side>in|out)_proj(?:s\.(?P<step>\d+))?")
_PEFT = "base_model.model."

Row = tuple[str, str, str]  # tensor, expected, found


@dataclass(frozen=True)
class Lora:
    """An adapter's file, its rank and its scaling, which multiplies B @ A."""

    path: Path
    rank: int
    scaling: float


@dataclass(frozen=True)
class _Pair:
    """The two matrices that change one matrix of the model, or one depth step of it."""

    module: str
    key: str  # of the changed tensor
    step: int | None  # None: the whole tensor
    down: Stored  # A
    up: Stored  # B


def read_lora(path: Path, scaling: float | None) -> tuple[Lora, dict[str, Stored]]:
    """The adapter at `path` and its tensors; for a folder, its lora.safetensors.

    Rank and scaling are in config.json beside the adapter; a given `scaling` wins. Raises CheckpointError for a file that is
    no adapter or a scaling that nothing names, ConfigError for an unreadable config.json.
    """
    path = path / ADAPTER_FILE if is_folder(path) else path
    if not is_file(path):
        raise CheckpointError(
            f"The adapter {path} does not exist. Name a safetensors file with --lora. To fetch one from the hub:\n"
            f"  hf download REPO {ADAPTER_FILE} {CONFIG_FILE} --local-dir adapter"
        )
    check_readable(path)
    tensors = read_header(path)
    downs = [tensor for key, tensor in tensors.items() if key.endswith(".lora_A.weight")]
    if not downs:
        raise CheckpointError(
            f"{path} is not an adapter: it has no tensor NAME.lora_A.weight. If it holds whole weights, put it into the "
            "checkpoint's folder, and build without --lora."
        )
    rank, scaling = _settings(path, scaling)
    return Lora(path, rank or min(tensor.shape[0] for tensor in downs), scaling), tensors


def merge(base: Mapping[str, Source], lora: Lora, tensors: Mapping[str, Stored], depth_sets: int) -> dict[str, Source]:
    """The base's tensors with the adapter's changes. Whole tensors in the adapter, such as embeddings, replace the base's.

    Raises CheckpointError that lists every tensor of the adapter that does not fit.
    """
    merged, problems = dict(base), list[Row]()
    pairs = [*_pairs(tensors, problems)]
    for key, tensor in tensors.items():
        if not _MATRIX.fullmatch(key):
            problems += _misfit(key, tensor, base[key].shape if key in base else None)
            merged[key] = tensor
    changed: dict[str, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        changed[pair.key].append(pair)
    for key, of_key in changed.items():
        if key not in base:
            problems += [(pair.down.key, "no such matrix in the base", "") for pair in of_key]
            continue
        sets = depth_sets if key.startswith("depformer.") and "self_attn" in key else 1
        wrong = [row for pair in of_key for row in _pair_problems(pair, merged[key].shape, sets, lora.rank)]
        problems += wrong
        if not wrong:
            merged[key] = _changed(merged[key], of_key, sets, lora.scaling)
    if problems:
        raise CheckpointError(_table(lora, problems, any(key.startswith(_PEFT) for key in tensors)))
    return merged


def _settings(path: Path, given: float | None) -> tuple[int | None, float]:
    beside = path.with_name(CONFIG_FILE)
    config: Mapping[str, Any] = read_object(beside) if is_there(beside) else {}
    rank, scaling = config.get("lora_rank"), config.get("lora_scaling") if given is None else given
    if scaling is None:
        raise CheckpointError(
            f"The scaling of {path} is unknown: {CONFIG_FILE} beside it does not name lora_scaling.\n"
            "Give the one it was trained with: --lora-scaling 2.0 (moshi-finetune's default)"
        )
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not math.isfinite(scaling) or scaling == 0:
        raise ConfigError(f"The scaling of {path} is {scaling!r}: it must be a number other than 0.")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ConfigError(f"{beside}: lora_rank is {rank!r}: it must be a whole number above 0.")
    return rank, float(scaling)


def _pairs(tensors: Mapping[str, Stored], problems: list[Row]) -> Iterator[_Pair]:
    sides: dict[str, dict[str, Stored]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if match := _MATRIX.fullmatch(key):
            sides[match["module"]][match["side"]] = tensor
    for module, found in sides.items():
        if len(found) == 1:
            (side,) = found
            problems.append((f"{module}.lora_{'B' if side == 'A' else 'A'}.weight", "", "missing"))
            continue
        projection = _PROJECTION.fullmatch(module)
        key, step = f"{module}.weight", None
        if projection is not None:
            key = f"{projection['attention']}.{'in_proj_' if projection['side'] == 'in' else 'out_proj.'}weight"
            step = None if projection["step"] is None else int(projection["step"])
        yield _Pair(module, key, step, found["A"], found["B"])


def _misfit(key: str, tensor: Stored, shape: tuple[int, ...] | None) -> Iterator[Row]:
    if shape is None:
        yield key, "no such tensor in the base", str(tensor.shape)
    elif tensor.shape != shape or tensor.dtype not in FLOATS:
        yield key, f"{' or '.join(FLOATS)} {shape}", f"{tensor.dtype} {tensor.shape}"


def _pair_problems(pair: _Pair, whole: tuple[int, ...], sets: int, rank: int) -> Iterator[Row]:
    if len(whole) != 2:
        yield pair.down.key, "a change of a matrix", f"of a tensor {whole}"
        return
    if pair.step is not None and pair.step >= sets:
        yield pair.down.key, f"steps 0 to {sets - 1}", f"step {pair.step}"
        return
    # A matrix of all steps is the steps' matrices, one below the other.
    parts, height = (sets, whole[0]) if pair.step is None else (1, whole[0] // sets)
    yield from _misfit(pair.down.key, pair.down, (parts * rank, whole[1]))
    yield from _misfit(pair.up.key, pair.up, (height, rank))


def _changed(base: Source, pairs: list[_Pair], sets: int, scaling: float) -> Source:
    changes: dict[int, tuple[Source, Source]] = {}
    for pair in pairs:
        if pair.step is None:
            changes |= {step: (Part(pair.down, step, sets), Part(pair.up, step, sets)) for step in range(sets)}
        else:
            changes[pair.step] = (pair.down, pair.up)
    parts = (Part(base, step, sets) if sets > 1 else base for step in range(sets))
    merged = (Merged(part, *changes[step], scaling) if step in changes else part for step, part in enumerate(parts))
    return Joined(tuple(merged))


def _table(lora: Lora, problems: list[Row], peft: bool) -> str:
    advice = (
        "It is an adapter of the library PEFT: only those of moshi-finetune are read."
        if peft
        else "Check that it was trained on this base, and that config.json beside it is the adapter's own."
    )
    return (
        f"{lora.path} (rank {lora.rank}) does not fit the checkpoint ({len(problems)} tensors):\n"
        f"{aligned([('tensor', 'expected', 'found'), *problems])}\n{advice}"
    )
