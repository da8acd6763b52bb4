"""LoRA adapters for tests."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from folders import CASES
from safetensors.torch import save_file
from torch import Tensor

from pplex.export.synth_tensors import normal

RANK, SCALING = 4, 2.0
MERGED = CASES / "lora" / "merged.safetensors"  # `record_lora.py` writes it
SAMPLES = 512


def matrices(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors that depend on their keys only."""
    return {key: normal(seed, key, math.prod(shape), 0.0, 0.2).reshape(shape) for key, shape in shapes.items()}


def write_adapter(path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, object] | None = None) -> Path:
    """Write the adapter, and `settings` into the config.json beside it."""
    save_file(dict(tensors), path)
    if settings is not None:
        path.with_name("config.json").write_text(json.dumps(settings))
    return path


def sampled(tensor: Tensor) -> Tensor:
    """Some of a tensor's numbers, evenly spaced; all if they are few."""
    flat = tensor.flatten()
    if len(flat) <= SAMPLES:
        return flat.clone()
    return flat[torch.linspace(0, len(flat) - 1, SAMPLES, dtype=torch.float64).long()].clone()
