"""The second moments of a matrix's input: called by `export.calibration` and `export.compensation`.

The channels of an input x [K] move together: a large share of it is the same in every step, and a few patterns make up most
of the rest. So E[x x^T] is kept as R directions and what each channel does on its own:

    E[x_i x_j] = directions_i . directions_j  (i != j)        E[x_i^2] = square_i
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

DIRECTIONS = 64
_SPARE = 16  # columns beyond DIRECTIONS that make the search for directions exact enough
_ROUNDS = 3
_ROWS = 64
_SMALLEST = 1e-30
_FLOOR = 0.01  # of the mean square of all channels: a channel silent in calibration may not always be silent


@dataclass(frozen=True)
class Moments:
    """square [K]: mean square of each channel; directions [K, R], with R = 0 if only the squares are known."""

    square: Tensor
    directions: Tensor

    def divided(self, factors: Tensor) -> "Moments":
        """The moments of the input divided by factors [K]."""
        return Moments(self.square / factors.square(), self.directions / factors[:, None])

    @property
    def own(self) -> Tensor:
        """What each channel does on its own, [K]: positive."""
        return (self.square - self.directions.square().sum(1)).clamp(min=0) + _FLOOR * self.square

    @cached_property
    def takes(self) -> Tensor:
        """What each row takes over of the errors along the directions, [K, R] (see `export.compensation`):

            c_i = (1 + sum(V_j V_j^T / d_j))^-1 V_i / d_i        the sum is over the rows j >= i

        From the last rows to the first, _ROWS at a time. P is the inverse until a block of rows V [b, R]. From the last row
        to the first, V P V' + diag(d) = L L' (Cholesky) takes each row's part away from the rows that follow, so
        c = diag(L)^-1 L^-1 V P.
        """
        directions, own = self.directions.double(), self.own.double().clamp(min=_SMALLEST)
        inverse, result = torch.eye(directions.shape[1], dtype=torch.float64), torch.empty_like(directions)
        for end in range(len(directions), 0, -_ROWS):
            rows = torch.arange(end - 1, max(end - _ROWS, 0) - 1, -1)
            known = directions[rows] @ inverse
            factor = torch.linalg.cholesky(known @ directions[rows].T + own[rows].diag())
            moved = torch.linalg.solve_triangular(factor, known, upper=False)
            result[rows] = moved / factor.diagonal()[:, None]
            inverse -= moved.T @ moved
        return result.float()


def importance(square: Tensor) -> Tensor:
    """The mean square of each channel, [K]: positive."""
    return square + _FLOOR * square.mean() + torch.finfo(torch.float32).tiny


def directions(rows: Tensor, count: int = DIRECTIONS) -> Tensor:
    """The directions [K, R] of the inputs `rows` [n, K], R <= count: the eigenvectors that stand out of the noise.

    A finite sample exaggerates its largest eigenvalues. They are corrected as in the spiked model (Donoho, Gavish and
    Johnstone 2018): with g = K / n and noise of size 1, a true value l is seen as l + g l / (l - 1), and not at all below
    1 + sqrt(g).
    """
    samples, channels = rows.shape
    count = min(count, channels // 4, samples // 4)
    basis = _basis(rows, min(count + _SPARE, channels, samples))
    inside = rows @ basis
    value, vector = torch.linalg.eigh((inside.T @ inside).double() / samples)  # ascending
    value, vector = value.flip(0)[:count], (basis.double() @ vector.flip(1))[:, :count]
    g = channels / samples
    noise, clear = _noise(value, float(rows.square().sum()) / samples, channels, (1 + math.sqrt(g)) ** 2)
    seen = value[:clear] / noise
    middle = seen + 1 - g
    true = (middle + (middle.square() - 4 * seen).clamp(min=0).sqrt()) / 2
    return (vector[:, :clear] * ((true - 1) * noise).sqrt()).float()


def _noise(value: Tensor, total: float, channels: int, edge: float) -> tuple[float, int]:
    """The size of the noise in the eigenvalues `value`, and how many of them are above `edge` times it."""
    clear = len(value)
    while True:
        noise = max(total - float(value[:clear].sum()), _SMALLEST) / (channels - clear)
        above = int((value[:clear] > edge * noise).sum())
        if above == clear:
            return noise, clear
        clear = above


def _basis(rows: Tensor, count: int) -> Tensor:
    """Orthonormal columns [K, count] near the largest eigenvectors of rows^T rows: subspace iteration."""
    basis = torch.randn(rows.shape[1], count, generator=torch.Generator().manual_seed(0))
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    return basis
