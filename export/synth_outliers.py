"""Heavy channels for a synthetic checkpoint, as in trained transformers: called by `export.synth`.

Random weights spread activations evenly, which makes quantization too easy. Here a few dimensions of the residual stream are
20 to 50 times as large as the others. The weights that write to them are multiplied by that factor, and the weights that
read them are divided by its square root. So these dimensions weigh much, and the others still count.
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
        """One dimension of every 512, at least two."""
        random = generator(seed, "outliers")
        count = max(2, dim // DIMS_PER_OUTLIER)
        return cls(np.sort(random.choice(dim, count, replace=False)), random.uniform(*FACTORS, count))

    def plant(self, piece: Array, key: str, shape: tuple[int, ...], start: int) -> None:
        """Multiply the numbers of the heavy dimensions in `piece`, in place.

        `piece` has the numbers start, start + 1, ... of the tensor `key`: bfloat16 as int16.
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
