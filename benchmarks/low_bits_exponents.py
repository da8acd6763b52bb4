"""Other choices of the exponent in AWQ, which is chosen by the error of rounding to nearest: called by `low_bits`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pplex.export.awq import Folding
from pplex.export.compensation import compensated
from pplex.export.moments import Moments
from pplex.export.quantize import BITS, to_int
from pplex.export.storage import Storage

_EXPONENTS = tuple(i / 10 for i in range(11))
_COLUMNS = 256


class _Chosen(Folding, ABC):
    """Chooses factors by an error of its own; other factors than 1 must reduce it below `share` of that without them."""

    share = 1.0

    def _factors(self, names: Sequence[str]) -> Tensor:
        found = [self.calibration.moments(self.graph, name) for name in names]
        size = torch.stack([self.calibration.importance(self.graph, name) for name in names]).mean(0).sqrt()
        given = [
            (some_columns(self.read(name)), moments, self.stored[name])
            for name, moments in zip(names, found, strict=True)
            if name in self.stored
        ]
        candidates = [balanced(size**exponent) for exponent in _EXPONENTS]
        errors = [sum(self.error(*one, factors) for one in given) for factors in candidates]
        best = errors.index(min(errors))
        return candidates[best if errors[best] < self.share * errors[0] else 0]

    @abstractmethod
    def error(self, weight: Tensor, moments: Moments, stored: Storage, factors: Tensor) -> float:
        """The error of some columns of a matrix with these factors."""


class Nearest(_Chosen):
    """The error of rounding to nearest, as in the export."""

    def error(self, weight: Tensor, moments: Moments, stored: Storage, factors: Tensor) -> float:
        rounded = to_int(weight * factors[:, None], BITS[stored.dtype], stored.block).dequantized() / factors[:, None]
        return float(((rounded - weight).square().sum(1) * moments.square).sum())


class Nearest90(Nearest):
    share = 0.9


class Nearest80(Nearest):
    share = 0.8


class Compensated(_Chosen):
    """The error of the rounding that follows: with signed scales, compensation, and the directions of the inputs."""

    def error(self, weight: Tensor, moments: Moments, stored: Storage, factors: Tensor) -> float:
        bits = BITS[stored.dtype]
        found = compensated(weight * factors[:, None], bits, stored.block, moments.divided(factors), bits == 4)
        error = found.dequantized() / factors[:, None] - weight
        along = moments.directions.T @ error
        return float(along.square().sum() + (error.square().sum(1) * moments.own).sum())


EXPONENTS: dict[str, type[Folding] | None] = {
    "AWQ, compensation": Folding,
    "compensation": None,
    "exponent by rounding to nearest, gain of 10 %": Nearest90,
    "exponent by rounding to nearest, gain of 20 %": Nearest80,
    "exponent by compensated rounding": Compensated,
}


def balanced(factors: Tensor) -> Tensor:
    return factors / (factors.max() * factors.min()).sqrt()


def some_columns(weight: Tensor) -> Tensor:
    return weight[:, :: max(1, weight.shape[1] // _COLUMNS)].float().contiguous()
