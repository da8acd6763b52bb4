"""Tensors of a checkpoint that are read in rows when they are needed, whatever form they are stored in.

`export.checkpoint` puts them together. A tensor may be stored as it is, in parts, as int8 with scales, or change by a LoRA.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

FLOATS = ("F32", "BF16", "F16")
INT8_STEPS = 127  # a scale is the largest absolute value of its row
_ITEMSIZE = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2}  # other dtypes have one byte


class Source(Protocol):
    """A tensor that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Entries `start` to `stop` of the first dimension."""

    def stored(self) -> Iterator["Stored"]:
        """The tensors in files that it is made of."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it is in a safetensors file, which is opened for each reading.

    An open file is mapped into memory, and each page read counts as memory of this process: 17 GB for a 17 GB checkpoint.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _ITEMSIZE.get(self.dtype, 1)

    def rows(self, start: int, stop: int) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            whole = (start, stop) == (0, self.shape[0])
            tensor: Tensor = file.get_tensor(self.key) if whole else file.get_slice(self.key)[start:stop]
        return tensor

    def stored(self) -> Iterator["Stored"]:
        yield self


@dataclass(frozen=True)
class Joined:
    """Tensors of one shape, one below the other, such as the weights of each depth step."""

    parts: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (first[0] * len(self.parts), *first[1:])

    def rows(self, start: int, stop: int) -> Tensor:
        height = self.parts[0].shape[0]
        found = []
        for i, part in enumerate(self.parts):
            above = i * height
            if start < above + height and stop > above:
                found.append(part.rows(max(start - above, 0), min(stop - above, height)))
        return found[0] if len(found) == 1 else torch.cat(found)

    def stored(self) -> Iterator[Stored]:
        for part in self.parts:
            yield from part.stored()


@dataclass(frozen=True)
class Part:
    """One of `parts` equal parts of a tensor's rows."""

    whole: Source
    part: int
    parts: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.whole.shape[0] // self.parts, *self.whole.shape[1:])

    def rows(self, start: int, stop: int) -> Tensor:
        above = self.part * self.shape[0]
        return self.whole.rows(above + start, above + stop)

    def stored(self) -> Iterator[Stored]:
        yield from self.whole.stored()


@dataclass(frozen=True)
class Dequantized:
    """int8 weights with a scale for each row, as bitsandbytes makes them, in float32."""

    weight: Source
    scale: Source  # [rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def rows(self, start: int, stop: int) -> Tensor:
        scale = self.scale.rows(start, stop).to(torch.float32)[:, None] / INT8_STEPS
        return self.weight.rows(start, stop).to(torch.float32) * scale

    def stored(self) -> Iterator[Stored]:
        yield from self.weight.stored()
        yield from self.scale.stored()


@dataclass(frozen=True)
class Merged:
    """A matrix with a LoRA: W + scaling * B @ A in float32, as moshi's package merges it."""

    base: Source  # W [out, in]
    down: Source  # A [rank, in]
    up: Source  # B [out, rank]
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> Tensor:
        up, down = self.up.rows(start, stop), self.down.rows(0, self.down.shape[0])
        change = (up.to(torch.float32) @ down.to(torch.float32)).mul_(self.scaling)
        return change.add_(self.base.rows(start, stop).to(torch.float32))  # in place: a matrix may take 0.4 GB

    def stored(self) -> Iterator[Stored]:
        for part in (self.base, self.down, self.up):
            yield from part.stored()
