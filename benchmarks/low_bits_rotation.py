"""Rotates a checkpoint's streams so that no channel is heavy (QuaRot): called by `low_bits`.

RMSNorm has no bias. With its weight multiplied into the next matrices, it commutes with every orthogonal matrix R. So the
residual stream x becomes x R: what writes to it is multiplied by R, and what reads it by R^T. The values of each attention
head are rotated too, and back in the output projection. The function stays the same.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from trained_checkpoint import Held

from pplex.export.checkpoint import Checkpoint
from pplex.runtime.config import ModelConfig, TransformerConfig

_LAYER = re.compile(r"(transformer|depformer)\.layers\.(\d+)\.(.+)")


def hadamard(size: int, seed: int) -> Tensor:
    """A Hadamard matrix with random signs, [size, size] float64, orthogonal; `size` is a power of two."""
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    assert len(found) == size, size
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return signs[:, None].double() * found / size**0.5


def _none(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype)


@dataclass(frozen=True)
class Rotation:
    """The rotations of both residual streams [dim, dim], and of the values of a head, by layer [D, D]."""

    temporal: Tensor
    depth: Tensor
    temporal_heads: list[Tensor]
    depth_heads: list[Tensor]

    @classmethod
    def drawn(cls, config: ModelConfig) -> "Rotation":
        return cls(
            hadamard(config.temporal.dim, 0),
            hadamard(config.depth.dim, 1),
            *([hadamard(s.head_dim, 2 + i) for i in range(s.layers)] for s in (config.temporal, config.depth)),
        )

    @property
    def of_streams(self) -> "Rotation":
        """Itself without the rotations of values."""
        none = ([_none(head) for head in heads] for heads in (self.temporal_heads, self.depth_heads))
        return Rotation(self.temporal, self.depth, *none)

    @property
    def of_depth(self) -> "Rotation":
        """Only that of the depth transformer's stream."""
        return replace(self.of_streams, temporal=_none(self.temporal))

    def applied(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same model with rotated streams, in memory, in float32."""
        rotated = _Rotated(self, checkpoint)
        held = {key: Held(rotated(key)) for key in checkpoint.tensors if key.startswith(_LANGUAGE)}
        return replace(checkpoint, tensors={**checkpoint.tensors, **held})


_LANGUAGE = ("text_emb", "emb.", "transformer.", "out_norm", "text_linear", "depformer", "linears.")


class _Rotated:
    """Reads a rotated tensor by its key. A matrix in a checkpoint is [outputs, inputs]."""

    def __init__(self, rotation: Rotation, checkpoint: Checkpoint):
        self.of, self.checkpoint = rotation, checkpoint

    def __call__(self, key: str) -> Tensor:
        layer = _LAYER.fullmatch(key)
        if layer is not None:
            found = self._in_layer(key, layer[1] == "transformer", int(layer[2]), layer[3])
        elif key.startswith(("text_emb", "emb.")):
            found = self._read(key) @ self.of.temporal
        elif key.startswith(("depformer_text_emb", "depformer_emb", "linears.")):
            found = self._read(key) @ self.of.depth
        elif key.startswith("text_linear"):
            found = self._reading(key, "out_norm.alpha", self.of.temporal)
        elif key.startswith("depformer_in."):
            found = self.of.depth.T @ self._reading(key, "out_norm.alpha", self.of.temporal)
        else:
            assert key == "out_norm.alpha", key
            found = torch.ones_like(self._read(key))
        return found.float().contiguous()

    def _in_layer(self, key: str, temporal: bool, i: int, part: str) -> Tensor:
        stream = self.of.temporal if temporal else self.of.depth
        head = (self.of.temporal_heads if temporal else self.of.depth_heads)[i]
        stack = self.checkpoint.config.temporal if temporal else self.checkpoint.config.depth
        above = f"{'transformer' if temporal else 'depformer'}.layers.{i}"
        if part.startswith("norm"):
            return torch.ones_like(self._read(key))
        if part == "self_attn.in_proj_weight":
            found = self._reading(key, f"{above}.norm1.alpha", stream).unflatten(0, (-1, 3, stack.dim))
            found[:, 2] = _by_head(found[:, 2], stack, lambda values: head.T @ values)
            return found.flatten(0, 2)
        if part == "self_attn.out_proj.weight":
            found = self._read(key).unflatten(0, (-1, stack.dim)).mT  # [sets, inputs, outputs]
            return (_by_head(found, stack, lambda values: head.T @ values) @ stream).mT.flatten(0, 1)
        if part.endswith("linear_in.weight"):
            return self._reading(key, f"{above}.norm2.alpha", stream)
        assert part.endswith("linear_out.weight"), key
        return stream.T @ self._read(key)

    def _reading(self, key: str, norm: str, stream: Tensor) -> Tensor:
        return self._read(key) * self._read(norm).flatten() @ stream

    def _read(self, key: str) -> Tensor:
        return self.checkpoint.read(key).double()


def _by_head(rows: Tensor, stack: TransformerConfig, rotate: Callable[[Tensor], Tensor]) -> Tensor:
    """Rotate the rows of each head of [sets, H * D, n]."""
    return rotate(rows.unflatten(1, (stack.heads, stack.head_dim))).flatten(1, 2)
