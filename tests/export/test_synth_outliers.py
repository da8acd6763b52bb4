"""Outlier channels are in tensors that write to and read from the residual stream, wherever a piece begins."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pplex.export.synth_outliers import FACTORS, Outliers

DIM = 64
HEAVY = Outliers(np.array([3, 40]), np.array([20.0, 50.0]))


def planted(key: str, shape: tuple[int, int], pieces: int) -> Tensor:
    """A tensor of ones after planting outliers in pieces."""
    ones = torch.ones(shape, dtype=torch.bfloat16).view(torch.int16).numpy().reshape(-1)
    start = 0
    for piece in np.array_split(ones, pieces):
        HEAVY.plant(piece, key, shape, start)
        start += len(piece)
    return torch.from_numpy(ones).view(torch.bfloat16).float().reshape(shape)


@pytest.mark.parametrize("pieces", [1, 7, 64])
def test_embeddings_have_heavy_columns(pieces: int) -> None:
    table = planted("emb.3.weight", (10, DIM), pieces)
    assert (table[:, 3] == 20).all() and (table[:, 40] == 50).all() and (table.sum(0) == 10).sum() == DIM - 2


@pytest.mark.parametrize("pieces", [1, 7, 64])
@pytest.mark.parametrize("part", ["self_attn.out_proj", "gating.linear_out"])
def test_writers_have_heavy_rows(part: str, pieces: int) -> None:
    weight = planted(f"transformer.layers.0.{part}.weight", (DIM, 30), pieces)
    assert (weight[3] == 20).all() and (weight[40] == 50).all() and (weight.sum(1) == 30).sum() == DIM - 2


@pytest.mark.parametrize(
    "key", ["transformer.layers.1.self_attn.in_proj_weight", "text_linear.weight", "depformer_in.7.weight"]
)
def test_readers_have_light_columns(key: str) -> None:
    weight = planted(key, (30, DIM), 5)
    torch.testing.assert_close(weight[:, [3, 40]], torch.tensor([20.0, 50.0]).rsqrt().expand(30, 2), rtol=1e-2, atol=0)
    assert (weight.sum(0) == 30).sum() == DIM - 2


@pytest.mark.parametrize("key", ["transformer.layers.1.norm1.alpha", "depformer.layers.0.gating.3.linear_in.weight"])
def test_other_tensors_are_unchanged(key: str) -> None:
    assert (planted(key, (30, DIM), 5) == 1).all()


def test_dimensions_and_factors_come_from_the_seed() -> None:
    heavy = Outliers.drawn(4096, seed=0)
    assert len(set(heavy.dims)) == 8 and heavy.dims.max() < 4096
    assert FACTORS[0] <= heavy.factors.min() and heavy.factors.max() <= FACTORS[1]
    assert np.array_equal(heavy.dims, Outliers.drawn(4096, seed=0).dims)
    assert not np.array_equal(heavy.dims, Outliers.drawn(4096, seed=1).dims)
