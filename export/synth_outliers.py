"""Heavy channels for a synthetic checkpoint, as trained transformers have: called by `export.synth`.

Random weights spread every activation evenly, which flatters a quantizer. Here a few dimensions of the residual stream
are 20 to 50 times the others: what writes to them is multiplied by that factor, and what reads them divided by its square
root, so that they carry much of what is read without drowning the rest.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pplex.export.synth_tensors import Array, generator

FACTORS = (20.0, 50.0)
DIMS_PER_OUTLIER = 512

_EMBEDDING = re.compile(r"(text_emb|emb\.\d+)\.weight")  # rows of the residual stream
_WRITER = re.compile(r"transformer\.layers\.\d+\.(self_attn\.out_proj|gating\.linear_out)\.weight")
_READER = re.compile(
    r"transformer\.layers\.\d+\.(self_attn\.in_proj_weight|gating\.linear_in\.weight)|(text_linear|depformer_in\.\d+)\.weight"
)


@dataclass(frozen=True)
class Outliers:
    """The heavy dimensions of the temporal transformer's residual stream, and the factor of each."""

    dims: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float64]

    @classmethod
    def drawn(cls, dim: int, seed: int) -> "Outliers":
        """One dimension in 512, two at least."""
        random = generator(seed, "outliers")
        count = max(2, dim // DIMS_PER_OUTLIER)
        return cls(np.sort(random.choice(dim, count, replace=False)), random.uniform(*FACTORS, count))

    def plant(self, piece: Array, key: str, shape: tuple[int, ...], start: int) -> None:
        """Multiply, in place, what belongs to the heavy dimensions in numbers start, start + 1, ... of a tensor.

        `piece` is bfloat16 as int16.
        """
        columns = shape[-1]
        for dim, factor in zip(self.dims, self.factors, strict=True):
            if _EMBEDDING.fullmatch(key):
                _multiply(piece[(dim - start) % columns :: columns], factor)
            elif _READER.fullmatch(key):
                _multiply(piece[(dim - start) % columns :: columns], factor**-0.5)
            elif _WRITER.fullmatch(key):
                _multiply(piece[max(0, dim * columns - start) : max(0, (dim + 1) * columns - start)], factor)


def _multiply(numbers: Array, factor: float) -> None:
    exact = torch.from_numpy(numbers.copy()).view(torch.bfloat16).float() * factor
    numbers[:] = exact.to(torch.bfloat16).view(torch.int16).numpy()
