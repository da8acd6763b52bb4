"""Rounding weights: every number within half a step, with scales fitted to the inputs."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import Tensor

from pplex.export.quantize import Quantized, pack_int4, to_fp8, to_int


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def added_error(weight: Tensor, quantized: Quantized, importance: Tensor) -> float:
    return float(((quantized.dequantized() - weight).square().sum(1) * importance).sum())


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 70),
    block=st.sampled_from([4, 8, 32]),
    bits=st.sampled_from([4, 8]),
    size=st.floats(1e-4, 1e3),
    seed=st.integers(0, 1 << 30),
    signed=st.booleans(),
)
def test_nearest_is_within_half_a_step(
    rows: int, columns: int, block: int, bits: int, size: float, seed: int, signed: bool
) -> None:
    weight = size * random(rows * block, columns, seed=seed)
    quantized = to_int(weight, bits, block, signed=signed)
    assert quantized.scale.shape == (rows, columns) and (quantized.scale != 0).all()
    assert signed or (quantized.scale > 0).all()
    assert -(1 << (bits - 1)) <= int(quantized.values.min()) and int(quantized.values.max()) < 1 << (bits - 1)
    step = quantized.scale.float().abs().repeat_interleave(block, 0)
    # A float16 scale is off by 2^-11 of itself, or by up to 2^-25; the largest value by that times the largest integer.
    rounding = (step * 2.0**-11 + 2.0**-25) * (1 << (bits - 1))
    assert ((quantized.dequantized() - weight).abs() <= step * 0.501 + rounding).all()


def test_tile_size_does_not_change_the_result() -> None:
    weight, importance = random(192, 3000), torch.rand(192) + 0.1
    whole = to_int(weight, 4, 32, importance)
    for block in range(6):
        rows = slice(32 * block, 32 * block + 32)
        alone = to_int(weight[rows, 2900:], 4, 32, importance[rows])
        # Errors summed in another order may tie: one or two of 100 columns may get another scale.
        same = whole.scale[block, 2900:] == alone.scale[0]
        assert same.float().mean() >= 0.95
        assert torch.equal(whole.values[rows, 2900:][:, same], alone.values[:, same])


def test_importance_moves_the_error_to_unimportant_weights() -> None:
    weight, importance = random(256, 64), torch.ones(256)
    importance[::16] = 100.0
    nearest, weighted = to_int(weight, 4, 32), to_int(weight, 4, 32, importance)
    assert added_error(weight, weighted, importance) < 0.75 * added_error(weight, nearest, importance)


def test_equally_important_weights_also_gain() -> None:
    weight, even = random(256, 64), torch.ones(256)
    assert added_error(weight, to_int(weight, 4, 32, even), even) < 0.95 * added_error(
        weight, to_int(weight, 4, 32), even
    )


@pytest.mark.parametrize("importance", [None, torch.ones(256)])
def test_scales_of_both_signs_use_the_lowest_integer(importance: Tensor | None) -> None:
    weight, even = random(256, 64), torch.ones(256)
    positive, signed = (to_int(weight, 4, 32, importance, signed) for signed in (False, True))
    assert added_error(weight, signed, even) < 0.92 * added_error(weight, positive, even)


@pytest.mark.parametrize("importance", [None, torch.ones(64)])
def test_a_block_of_zeros_stays_zero(importance: Tensor | None) -> None:
    weight = random(64, 8)
    weight[:32] = 0.0
    quantized = to_int(weight, 4, 32, importance)
    assert (quantized.dequantized()[:32] == 0).all() and torch.isfinite(quantized.scale).all()


def test_fp8_keeps_three_mantissa_bits_in_every_column() -> None:
    weight = random(64, 16) * torch.logspace(-3, 3, 16)
    quantized = to_fp8(weight)
    relative = ((quantized.dequantized() - weight) / weight).abs()
    assert quantized.scale.shape == (16,)
    assert relative[weight.abs() > weight.abs().amax(0) / 1000].max() <= 2**-4 * 1.01


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_packed_int4_is_onnx_int4(shape: tuple[int, int]) -> None:
    values = torch.randint(-8, 8, shape, dtype=torch.int8)
    tensor = helper.make_tensor("w", onnx.TensorProto.INT4, shape, pack_int4(values).numpy().tobytes(), raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values.numpy())
