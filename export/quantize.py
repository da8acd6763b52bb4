"""Weights in 8 or 4 bits: rounding them, with scales for a column or for a block of a column.

A weight is [K, N], K being what a MatMul sums over. A block is `block` weights in a row along K that share a scale,
symmetric around zero as TensorRT wants it. Called by `export.build` while a graph is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pplex.export.threads import in_threads

FP8_MAX = 448.0  # the largest number of E4M3
SCALE_DTYPE = torch.float16
_TILE = 1 << 16  # weights a thread works on at a time, so that they stay in its processor's cache

# What the largest weight of a block may be divided by to get the scale of int4. At 7 nothing is cut off; the more, the
# finer the steps for the others.
_INT4_DIVISORS = (7.0, 7.5, 8.0, 8.6, 9.3, 10.2)


@dataclass(frozen=True)
class Quantized:
    """values [K, N] int8, or float8_e4m3fn, and scale float16: [K / block, N], or [N] where `block` is 0."""

    values: Tensor
    scale: Tensor
    block: int

    def dequantized(self) -> Tensor:
        """What a graph computes with, [K, N] float32."""
        scale = self.scale.float()
        if self.block:
            scale = scale.repeat_interleave(self.block, 0)
        return self.values.float() * scale


def to_fp8(weight: Tensor) -> Quantized:
    """E4M3 with one scale a column."""
    scale = _scale(weight.abs().amax(0) / FP8_MAX)
    return Quantized((weight / scale.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale, 0)


def to_int(weight: Tensor, bits: int, block: int, importance: Tensor | None = None) -> Quantized:
    """Signed integers of `bits` bits in blocks, which divide K.

    Without `importance` a scale is the block's largest weight over the largest integer (round to nearest). With it, [K], the
    mean square of the input each row is multiplied by, scales are those that add the least error to the output: of a
    few divisors, and for each the least-squares optimum over the integers it gives.
    """
    top = (1 << (bits - 1)) - 1

    values = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0] // block, weight.shape[1], dtype=SCALE_DTYPE)

    def fill(tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        blocks = weight[tile].unflatten(0, (-1, block))  # [k, b, n]
        if importance is None:
            best = blocks.abs().amax(1) / top
        else:
            best = _least_error(blocks, importance[rows, None].unflatten(0, (-1, block)), top)
        stored = _scale(best)
        values[tile] = _divided(blocks, stored.float(), top).flatten(0, 1).to(torch.int8)
        scale[rows.start // block : rows.stop // block, columns] = stored

    in_threads(fill, _tiles(weight, block))
    return Quantized(values, scale, block)


def pack_int4(values: Tensor) -> Tensor:
    """Two of ONNX's int4 a byte, the first one in the low bits: [K, N] int8 -> [K * N / 2] uint8 (rounded up)."""
    flat = values.flatten().view(torch.uint8) & 15
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[::2] | (flat[1::2] << 4)


def _least_error(blocks: Tensor, importance: Tensor, top: int) -> Tensor:
    """The scale [K/b, N] of each block [b, N] for which sum(importance * (w - q * scale)^2) is least.

    For fixed integers q the best scale is sum(i w q) / sum(i q q), and what it saves is sum(i w q)^2 / sum(i q q).
    """
    largest = blocks.abs().amax(1).clamp(min=1e-12)
    weighted = importance * blocks
    best, saved = largest / top, torch.full_like(largest, -1.0)
    for divisor in _INT4_DIVISORS:
        q = _divided(blocks, largest / divisor, top)
        product = (weighted * q).sum(1)
        square = (importance * q.square_()).sum(1).clamp(min=1e-30)
        gain = product * product / square
        best = torch.where(gain > saved, product / square, best)
        saved = torch.maximum(gain, saved)
    return best


def _divided(blocks: Tensor, scale: Tensor, top: int) -> Tensor:
    """The nearest integers to blocks [k, b, N] / scale [k, N]."""
    return (blocks * scale.reciprocal()[:, None]).round_().clamp_(-top - 1, top)


def _scale(exact: Tensor) -> Tensor:
    """As stored: positive in float16, where what divides by it and what multiplies by it are the same number."""
    rounded = exact.clamp(max=torch.finfo(SCALE_DTYPE).max).to(SCALE_DTYPE)
    return torch.where(rounded > 0, rounded, torch.finfo(SCALE_DTYPE).smallest_normal)


def _tiles(weight: Tensor, block: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of pieces of about _TILE weights, whole blocks each."""
    rows, columns = weight.shape
    width = min(columns, _TILE // block)
    height = block * max(1, _TILE // (block * width))
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield slice(row, min(row + height, rows)), slice(column, min(column + width, columns))
