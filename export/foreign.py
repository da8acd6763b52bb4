"""Tensors of models that are not implemented: refused by name, with what they are for. Called by `export.checkpoint`."""

import re
from collections.abc import Iterable

from pplex.runtime.errors import CheckpointError

# Patterns of keys. Sources: the modules of PyPI's moshi 0.2.13.
_PARTS = {
    r"condition_provider\..*|fuser\..*": "conditions, which steer the model by a label or a description",
    r"extra_heads\..*": "extra heads, which predict more than tokens, for example the end of a turn",
    r".*\.low_rank\..*": "embeddings that are products of two matrices",
    r".*\.out[12]\.weight": "a second text stream",
    r".*\.(cross_attention|norm_cross)\..*": "attention to a second input, for example another model's output",
    r"depformer_norms\..*": "a norm at the end of each depth step",
    r".*\.scales|.*\.biases": "weights that the library MLX has quantized; use the checkpoint for PyTorch",
}
_LORA = re.compile(r".*\.(lora_[AB]|frozen_W)\.weight|base_model\.model\..*")


def check_native(keys: Iterable[str], name: str) -> None:
    """Raise CheckpointError if `keys` of the file `name` belong to an unmerged LoRA or to parts that are not implemented."""
    keys = list(keys)
    if lora := [key for key in keys if _LORA.fullmatch(key)]:
        raise CheckpointError(
            f"{name} has an unmerged LoRA ({len(lora)} tensors, such as {lora[0]}), which a build would leave out.\n"
            "Save the adapter as a file of its own and name it with --lora FILE, or merge it first (in moshi: "
            "fuse_lora=True)."
        )
    found = {what: [key for key in keys if re.fullmatch(pattern, key)] for pattern, what in _PARTS.items()}
    lines = [f"{what}: {len(of_part)} tensors, such as {of_part[0]}" for what, of_part in found.items() if of_part]
    if lines:
        raise CheckpointError(
            f"{name} holds parts of another model, which cannot be built:\n  " + "\n  ".join(lines) + "\n"
            "docs/checkpoints.md lists the checkpoints that can be built."
        )
