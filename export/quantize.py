"""Rounds weights to 8 or 4 bits, with a scale for each column or for each block of a column.

A weight is [K, N]; a MatMul sums over K. A block is `block` consecutive weights along K that share a scale. Values are
symmetric around zero, because TensorRT requires it. Called by `export.exporter` and `export.awq`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pplex.export.threads import in_threads

FP8_MAX = 448.0  # the largest number of E4M3
SCALE_DTYPE = torch.float16
BITS = {"int8": 8, "int4": 4}
_TILE = 1 << 16  # weights that a thread works on at a time: they fit its processor's cache

# The largest weight of a block becomes the largest integer times one of these factors. With 1 no weight is clipped. A larger
# factor clips the largest weights and gives the others finer steps.
_FACTORS = (1.0, 7.5 / 7, 8 / 7, 8.6 / 7, 9.3 / 7, 10.2 / 7)
_SIGNED_FACTORS = (0.88, 0.94, 1.0, 1.06, 1.13, 1.22)  # the largest weight becomes -8 times one of these
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Quantized:
    """values [K, N] int8 or float8_e4m3fn; scale float16 [K / block, N], or [N] if `block` is 0."""

    values: Tensor
    scale: Tensor
    block: int

    def dequantized(self) -> Tensor:
        """The weight that a graph computes with, [K, N] float32."""
        scale = self.scale.float()
        if self.block:
            scale = scale.repeat_interleave(self.block, 0)
        return self.values.float() * scale


def to_fp8(weight: Tensor) -> Quantized:
    """E4M3 with one scale for each column."""
    scale = _scale(weight.abs().amax(0) / FP8_MAX)
    return Quantized((weight / scale.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale, 0)


def to_int(weight: Tensor, bits: int, block: int, importance: Tensor | None = None, signed: bool = False) -> Quantized:
    """Signed integers of `bits` bits, in blocks of `block` weights; `block` divides K, or is 0 for a whole column.

    Without `importance`, a scale is the block's largest weight over the largest integer (round to nearest). `importance`
    [K] is the mean square of each input channel. With it, each block gets the scale with the least output error: see
    `best_scale`.

    `signed`: a scale may be negative. Integers reach one further below zero than above. With a scale of the right sign the
    largest weight gets the lowest integer, so the steps are up to an eighth finer in 4 bits.
    """
    if not block:
        column = to_int(weight, bits, len(weight), importance, signed)
        return Quantized(column.values, column.scale[0], 0)
    top = (1 << (bits - 1)) - 1

    values = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0] // block, weight.shape[1], dtype=SCALE_DTYPE)

    def fill(tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        blocks = weight[tile].unflatten(0, (-1, block))  # [k, b, n]
        if importance is None:
            stored = _scale(_largest(blocks, top, signed))
        else:
            stored = best_scale(blocks, importance[rows, None].unflatten(0, (-1, block)), bits, signed)
        values[tile] = _divided(blocks, stored.float(), top).flatten(0, 1).to(torch.int8)
        scale[rows.start // block : rows.stop // block, columns] = stored

    in_threads(fill, _tiles(weight, block))
    return Quantized(values, scale, block)


def pack_int4(values: Tensor) -> Tensor:
    """Pack two int4 numbers into a byte as ONNX does, the first in the low bits: [K, N] int8 -> [ceil(K * N / 2)] uint8."""
    flat = values.flatten().view(torch.uint8) & 15
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[::2] | (flat[1::2] << 4)


def best_scale(blocks: Tensor, importance: Tensor, bits: int, signed: bool) -> Tensor:
    """The stored scale of each block with the least sum(importance * (w - q * scale)^2): [k, N] for blocks [k, b, N].

    Each factor of _FACTORS gives integers q. For fixed q the best scale is sum(i w q) / sum(i q q), and it reduces
    the error by sum(i w q)^2 / sum(i q q). Here i is the importance and w the weight.
    """
    top = (1 << (bits - 1)) - 1
    widest = _largest(blocks, top, signed)
    weighted = importance * blocks
    best, saved = widest, torch.full_like(widest, -1.0)
    for factor in _SIGNED_FACTORS if signed else _FACTORS:
        q = _divided(blocks, widest / factor, top)
        product = (weighted * q).sum(1)
        square = (importance * q.square_()).sum(1).clamp(min=1e-30)
        gain = product * product / square
        best = torch.where(gain > saved, product / square, best)
        saved = torch.maximum(gain, saved)
    return _scale(best)


def _largest(blocks: Tensor, top: int, signed: bool) -> Tensor:
    """The smallest scale [k, N] with which no weight of a block [k, b, N] is clipped by more than half a step."""
    if not signed:
        return blocks.abs().amax(1).clamp(min=_SMALLEST) / top
    high, low = blocks.amax(1), -blocks.amin(1)
    size = torch.maximum(torch.maximum(high, low) / (top + 1), torch.minimum(high, low) / (top + 0.5))
    return torch.where(high > low, -1.0, 1.0) * size.clamp(min=_SMALLEST)


def _divided(blocks: Tensor, scale: Tensor, top: int) -> Tensor:
    """The nearest integers to blocks [k, b, N] / scale [k, N]."""
    return (blocks * scale.reciprocal()[:, None]).round_().clamp_(-top - 1, top)


def _scale(exact: Tensor) -> Tensor:
    """The scale as stored: float16 and not zero. Quantizing and dequantizing must use this same rounded number."""
    limit = torch.finfo(SCALE_DTYPE).max
    rounded = exact.clamp(-limit, limit).to(SCALE_DTYPE)
    return torch.where(rounded != 0, rounded, torch.finfo(SCALE_DTYPE).smallest_normal)


def _tiles(weight: Tensor, block: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of tiles: each has about _TILE weights in whole blocks."""
    rows, columns = weight.shape
    width = min(columns, _TILE // block)
    height = block * max(1, _TILE // (block * width))
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield slice(row, min(row + height, rows)), slice(column, min(column + width, columns))
