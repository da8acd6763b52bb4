"""Records how PyPI's moshi merges a LoRA, in tests/cases/lora/merged.safetensors. `test_lora.py` compares it with ours.

The package is not one of ours. To record again:
pip install --no-deps --target MOSHI moshi==0.2.13 einops && PYTHONPATH=MOSHI python tests/record_lora.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from adapters import MERGED, RANK, SCALING, matrices, sampled, write_adapter
from folders import TINY
from moshi.models.loaders import get_moshi_lm
from safetensors.torch import save_file


def record() -> None:
    """Merge a random adapter into the tiny checkpoint in float32, with the package's own names of matrices."""
    given = json.loads((TINY / "checkpoint" / "config.json").read_text())["lm"]
    arguments = {**given, "lora": True, "lora_rank": RANK, "lora_scaling": SCALING}
    empty = get_moshi_lm(None, arguments, "cpu", torch.float32)
    shapes = {key: tuple(tensor.shape) for key, tensor in empty.state_dict().items() if ".lora_" in key}
    with tempfile.TemporaryDirectory() as folder:
        adapter = write_adapter(Path(folder) / "lora.safetensors", matrices(shapes))
        base = TINY / "checkpoint" / "model.safetensors"
        merged = get_moshi_lm(base, arguments, "cpu", torch.float32, adapter, fuse_lora=True)
    found = {key: sampled(tensor) for key, tensor in merged.state_dict().items()}
    save_file(found, MERGED, {"shapes": json.dumps(shapes)})
    print(f"{MERGED}: {len(found)} tensors, {sum(np.prod(shape) for shape in shapes.values())} numbers in the adapter")


if __name__ == "__main__":
    record()
