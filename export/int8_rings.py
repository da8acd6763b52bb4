"""Rings of keys and values in int8: their attention as torch modules, and their scales. Called by `export.exporter`.

Each channel of a ring has one scale, from the calibration. Attention reads the integers as they are: the scale of a key's
channel is multiplied into the query, and that of a value's channel into the result.

    ring_k = round(k / scale_k)        q . k  =  (q * scale_k) . ring_k
    ring_v = round(v / scale_v)        p v    =  (p ring_v) * scale_v

TensorRT's layer for KV caches refuses 8 bits. In a graph for engines a ring has half as many channels in float16, and each
value holds two integers, a and b: channel i of the first half of a head, and channel i of the second.

    float16   sign | 5 bits of exponent | 10 bits of mantissa
              of b |   |b| in fours     | 2 bits: the rest of |b|, 8 bits: a + 128
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pplex.export.calibration import Calibration
from pplex.export.layers import RingAttention, ring_attention
from pplex.runtime.config import INT8, INT8_PAIRS, ModelConfig, TransformerConfig
from pplex.runtime.errors import CalibrationError

LARGEST = 127  # -128 is not used, so that both signs have the same range
LARGEST_B = (
    119  # of the second of a pair: float16 has 30 exponents for finite values of full precision, and 4 * 30 = 120
)
# A ring takes values up to this many times the largest of the calibration. Larger ones are cut off, which costs more than
# coarser steps: docs/precision.md has the measurement.
ROOM = 1.5
_FLOOR = 1e-3  # of a layer's largest value: a channel silent in calibration may not always be silent
_LOWEST = -14  # the smallest exponent of a float16 with full precision
_LOG2 = math.log(2)


class RingScales(nn.Module):
    """The scales of one layer's rings, [H, 1, D] float32: a value is its integer times its scale."""

    stays_float32 = True

    def __init__(self, stack: TransformerConfig):
        super().__init__()
        self.k, self.v = (nn.Parameter(torch.empty(stack.heads, 1, stack.head_dim)) for _ in "kv")


class Int8RingAttention(RingAttention):
    """RingAttention over rings [B, H, C, D] in int8."""

    def __init__(self, stack: TransformerConfig):
        super().__init__(stack)
        self.scales = RingScales(stack)

    def attend(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        rings: tuple[Tensor, Tensor],
        index: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv
        ring_k = self.write(rings[0], self.stored(k, self.scales.k), index)
        ring_v = self.write(rings[1], self.stored(v, self.scales.v), index)
        q = (q.float() * self.scales.k).to(v.dtype)
        y = ring_attention(q, self.read(ring_k).to(v.dtype), self.read(ring_v).to(v.dtype), mask, lengths)
        return (y.float() * self.scales.v).to(v.dtype), ring_k, ring_v

    def stored(self, x: Tensor, scale: Tensor) -> Tensor:
        """x [B, H, T, D] as a ring holds it."""
        return integers(x, scale, LARGEST).to(torch.int8)

    def read(self, ring: Tensor) -> Tensor:
        """The integers [B, H, C, D] of a ring."""
        return ring


class PairedRingAttention(Int8RingAttention):
    """RingAttention over rings [B, H, C, D / 2] in float16 that hold pairs of int8."""

    def stored(self, x: Tensor, scale: Tensor) -> Tensor:
        (a, b), (scale_a, scale_b) = x.chunk(2, -1), scale.chunk(2, -1)
        return to_pairs(integers(a, scale_a, LARGEST), integers(b, scale_b, LARGEST_B))

    def read(self, ring: Tensor) -> Tensor:
        return torch.cat(from_pairs(ring), -1)


def integers(x: Tensor, scale: Tensor, largest: int) -> Tensor:
    """x [B, H, T, D] in steps of scale [H, 1, D], as float32; values out of range become the largest."""
    return torch.clamp(torch.round(x.float() / scale), -largest, largest)


def to_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Integers a, from -127 to 127, and b, from -119 to 119, of one shape as one float16 each."""
    size = b.abs()
    fours = torch.floor(size * 0.25)
    mantissa = (size - fours * 4) * 256 + (a + 128)  # 0 to 1023
    # An error of exp's last digits is far below a float16's, so the result is exact.
    value = (1 + mantissa * 2**-10) * torch.exp((fours + _LOWEST) * _LOG2)
    return torch.where(b < 0, -value, value).to(torch.float16)


def from_pairs(ring: Tensor) -> tuple[Tensor, Tensor]:
    """The integers of each pair in float32: inverse of `to_pairs`. An entry that was never written gives -128 and 0."""
    x = ring.float()
    size = x.abs().clamp(min=2.0**_LOWEST)
    # Just above the value, so that an inexact logarithm of a power of two is not rounded down to the next one.
    exponent = torch.floor(torch.log(size * (1 + 2**-12)) * (1 / _LOG2))
    mantissa = torch.round((size * torch.exp(exponent * -_LOG2) - 1) * 2**10)
    rest = torch.floor(mantissa * 2**-8)
    a = mantissa - rest * 256 - 128
    return a, torch.sign(x) * ((exponent - _LOWEST) * 4 + rest)


ATTENTIONS: dict[str, type[RingAttention]] = {INT8: Int8RingAttention, INT8_PAIRS: PairedRingAttention}


def ring_scales(calibration: Calibration | None, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The scales of all layers by their parameter's name, [H, 1, D] float32.

    Raises CalibrationError without a calibration that has the rings' values.
    """
    if calibration is None or not calibration.rings:
        raise CalibrationError(
            "The scales of --kv-cache int8 come from a calibration, and this one was made without them. "
            "Leave --calibration out for synthetic speech, or name a folder of recordings."
        )
    for i in range(config.temporal.layers):
        for kv in "kv":
            name = f"layers.{i}.attention"
            yield f"{name}.scales.{kv}", _scale(calibration.rings[f"temporal.{name}.{kv}"], config)


def _scale(found: Tensor, config: ModelConfig) -> Tensor:
    """The scale of each channel, for its largest value [H, D] in the calibration."""
    floor = max(float(found.max()) * _FLOOR, torch.finfo(torch.float32).tiny)
    steps = torch.full(found.shape[-1:], float(LARGEST))
    if config.kv_cache == INT8_PAIRS:
        steps[len(steps) // 2 :] = LARGEST_B
    return (found.clamp(min=floor) * ROOM / steps)[:, None]
