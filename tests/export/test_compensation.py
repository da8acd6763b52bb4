"""Rounding errors cancel along the common directions of the inputs."""

import pytest
import torch
from torch import Tensor

from pplex.export import threads
from pplex.export.compensation import compensated
from pplex.export.moments import Moments, directions, importance
from pplex.export.quantize import Quantized, to_int


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, patterns: int, seed: int, own: float = 0.5) -> Tensor:
    """[rows, 256]: a constant, some patterns that all rows mix, and noise of each channel's own."""
    common = random(patterns, 256, seed=100)
    return random(256, seed=101) + random(rows, patterns, seed=seed) @ common + own * random(rows, 256, seed=seed + 1)


def moments_of(x: Tensor) -> Moments:
    return Moments(x.square().mean(0), directions(x))


def output_error(x: Tensor, weight: Tensor, quantized: Quantized) -> float:
    return float((x @ (quantized.dequantized() - weight)).square().mean())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_correlated_inputs_get_a_fraction_of_the_error(block: int, signed: bool) -> None:
    weight, unheard = random(256, 96), inputs(500, patterns=6, seed=7)
    moments = moments_of(inputs(1000, patterns=6, seed=3))
    nearest = to_int(weight, 4, block, importance(moments.square), signed)
    found = compensated(weight, 4, block, moments, signed)
    assert output_error(unheard, weight, found) < 0.2 * output_error(unheard, weight, nearest)
    assert found.values.min() >= -8 and found.values.max() <= 7 and (signed or (found.scale > 0).all())


def test_noise_has_hardly_a_direction() -> None:
    assert directions(random(1000, 256, seed=5)).shape[1] <= 2


def test_without_directions_weights_are_rounded_as_before() -> None:
    weight = random(256, 32)
    moments = Moments(torch.rand(256, generator=torch.Generator().manual_seed(1)), torch.empty(256, 0))
    nearest = to_int(weight, 4, 32, importance(moments.square))
    found = compensated(weight, 4, 32, moments)
    assert torch.equal(found.values, nearest.values) and torch.equal(found.scale, nearest.scale)


def test_directions_are_those_of_the_true_moments() -> None:
    common = random(6, 256, seed=100)
    mean = random(256, seed=101)
    true = common.T @ common + torch.outer(mean, mean)
    x = inputs(400, patterns=6, seed=3)
    found = directions(x)
    assert 7 <= found.shape[1] <= 9
    assert (found @ found.T - true).norm() < 0.2 * true.norm()


def test_the_number_of_threads_and_a_second_run_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = random(256, 5000), moments_of(inputs(300, patterns=4, seed=3))
    found = compensated(weight, 4, 32, moments, signed=True)
    for count in (1, 3):
        monkeypatch.setattr(threads, "available_threads", lambda count=count: count)
        again = compensated(weight, 4, 32, moments, signed=True)
        assert torch.equal(again.values, found.values) and torch.equal(again.scale, found.scale)


def test_dividing_the_inputs_equals_moments_of_divided_inputs() -> None:
    x, factors = inputs(300, patterns=4, seed=3), torch.rand(256, generator=torch.Generator().manual_seed(9)) + 0.5
    divided, moments = Moments(x.square().mean(0), directions(x)).divided(factors), moments_of(x)
    torch.testing.assert_close(divided.square, (x / factors).square().mean(0))
    torch.testing.assert_close(divided.directions * factors[:, None], moments.directions)


def test_a_silent_channel_and_a_block_of_zeros_stay_finite() -> None:
    x, weight = inputs(300, patterns=4, seed=3), random(256, 16)
    x[:, 40:50], weight[64:96] = 0.0, 0.0
    found = compensated(weight, 4, 32, moments_of(x), signed=True)
    assert torch.isfinite(found.scale).all() and torch.isfinite(found.dequantized()).all()
