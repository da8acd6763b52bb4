"""Activation-aware weight quantization (AWQ, Lin et al. 2023): important channels are scaled up before rounding.

Rounding errors are largest in a channel with large inputs. Its weights are multiplied by a factor, and its input is divided
by the same factor. So the function stays the same, and the channel's rounding error shrinks. The division costs nothing: it
is folded into the norm before the matrix, or into the columns of the matrix before, whose scales absorb it. Called by
`export.exporter`.

    norm1 / s    in_proj rows * s, columns of v / t    out_proj rows * t
    norm2 / u    linear_in rows * u, columns of the value half / w    linear_out rows * w
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pplex.export.calibration import Calibration
from pplex.export.quantize import BITS, to_int
from pplex.export.storage import Storage
from pplex.runtime.config import ModelConfig

_EXPONENTS = tuple(i / 10 for i in range(11))
_SAMPLED_COLUMNS = 256  # of each matrix: enough to compare exponents


@dataclass(frozen=True)
class Fold:
    """The factors of a parameter: rows [K] (a norm's weight has only rows), columns [N]."""

    rows: Tensor | None = None
    columns: Tensor | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        if self.rows is not None:
            parameter = parameter * self.rows.reshape(-1, *[1] * (parameter.dim() - 1))
        return parameter if self.columns is None else parameter * self.columns


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer by role; matrices that read the same norm are listed together."""

    norm1: str
    in_proj: tuple[str, ...]
    out_proj: tuple[str, ...]
    norm2: str
    linear_in: tuple[str, ...]
    linear_out: tuple[str, ...]


class Folding:
    """Computes the factors that are folded into one graph's layers. `read` gives a matrix by its name; each is read once."""

    def __init__(
        self,
        graph: str,
        read: Callable[[str], Tensor],
        calibration: Calibration,
        stored: Mapping[str, Storage],
    ):
        self.graph, self.read, self.calibration, self.stored = graph, read, calibration, stored

    def folds(self, config: ModelConfig) -> dict[str, Fold]:
        """The factors of each parameter, by name."""
        return {name: fold for layer in layers(self.graph, config) for name, fold in self.layer(layer).items()}

    def layer(self, layer: Layer) -> dict[str, Fold]:
        """The factors of one layer's parameters."""
        # A depth step attends to the values of earlier steps, so all steps must share t. They share the norms, so also s, u.
        s, t, u = (self._factors(names) for names in (layer.in_proj, layer.out_proj, layer.linear_in))
        result = {layer.norm1: Fold(rows=1 / s), layer.norm2: Fold(rows=1 / u)}
        result |= {name: Fold(s, torch.cat([torch.ones(2 * len(t)), 1 / t])) for name in layer.in_proj}  # q, k, v
        result |= {name: Fold(t) for name in layer.out_proj}
        for before, after in zip(layer.linear_in, layer.linear_out, strict=True):
            w = self._factors((after,))
            result[before] = Fold(u, torch.cat([torch.ones(len(w)), 1 / w]))  # gate, value
            result[after] = Fold(w)
        return result

    def _factors(self, names: Sequence[str]) -> Tensor:
        """Factors [K] for matrices with a common input: size^a, for the exponent a with the smallest output error."""
        squares = [self.calibration.importance(self.graph, name) for name in names]
        size = torch.stack(squares).mean(0).sqrt()  # [K]
        rounded = [
            (_some_columns(self.read(name)), square, self.stored[name])
            for name, square in zip(names, squares, strict=True)
            if name in self.stored  # in a mixed precision, a matrix may keep 16 bits
        ]
        return best_factors(rounded, size)


def best_factors(rounded: Sequence[tuple[Tensor, Tensor, Storage]], size: Tensor) -> Tensor:
    """Factors [K] for some columns of matrices, each with its mean squares of the input and its storage: `size`^a.

    Without a matrix, all factors are 1.
    """
    candidates = [_balanced(size**exponent) for exponent in _EXPONENTS]
    errors = [
        sum(_error(weight, square, factors, stored) for weight, square, stored in rounded) for factors in candidates
    ]
    return candidates[errors.index(min(errors))]


def _error(weight: Tensor, square: Tensor, factors: Tensor, stored: Storage) -> float:
    """The square of the output error due to rounding, assuming uncorrelated inputs."""
    rounded = to_int(weight * factors[:, None], BITS[stored.dtype], stored.block).dequantized() / factors[:, None]
    return float(((rounded - weight).square().sum(1) * square).sum())


def _balanced(factors: Tensor) -> Tensor:
    """Scale the factors so that largest * smallest = 1: they stay within float16."""
    return factors / (factors.max() * factors.min()).sqrt()


def _some_columns(weight: Tensor) -> Tensor:
    return weight[:, :: max(1, weight.shape[1] // _SAMPLED_COLUMNS)].float().contiguous()


def layers(graph: str, config: ModelConfig) -> list[Layer]:
    """The layers of the temporal or depth graph."""
    return _temporal_layers(config) if graph == "temporal" else _depth_layers(config)


def _temporal_layers(config: ModelConfig) -> list[Layer]:
    return [
        Layer(
            f"layers.{i}.norm1.weight",
            (f"layers.{i}.attention.in_proj.weight",),
            (f"layers.{i}.attention.out_proj.weight",),
            f"layers.{i}.norm2.weight",
            (f"layers.{i}.gating.linear_in.weight",),
            (f"layers.{i}.gating.linear_out.weight",),
        )
        for i in range(config.temporal.layers)
    ]


def _depth_layers(config: ModelConfig) -> list[Layer]:
    """All steps share a layer's norms."""

    def of_each_step(part: str, i: int) -> tuple[str, ...]:
        inside, _, leaf = part.partition("/")
        return tuple(f"steps.{k}.{inside}.{i}{leaf}.weight" for k in range(config.depth_steps))

    return [
        Layer(
            f"norm1.{i}.weight",
            of_each_step("in_proj", i),
            of_each_step("out_proj", i),
            f"norm2.{i}.weight",
            of_each_step("gating/.linear_in", i),
            of_each_step("gating/.linear_out", i),
        )
        for i in range(config.depth.layers)
    ]
