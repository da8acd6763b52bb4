"""Products with weights in blocks: against exact results, and the same bits with all instructions and numbers of threads."""

import numpy as np
import pytest
from block_products import EPSILON, TOP, Product, run, session_of

from pplex.kernels import Kernel
from pplex.runtime.arrays import Array

SHAPES = [(32, 1, 32), (32, 16, 32), (96, 17, 32), (128, 100, 64), (384, 33, 128), (1024, 48, 32), (256, 700, 32)]
BITS = [4, 8]
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33]
# Sums of blocks are exact; the blocks are added in float32, whose rounding grows with their number.
RELATIVE = 1e-5


def activations(rows: int, depth: int) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, depth)).astype(np.float32)


def on_every_level(kernel: Kernel, product: Product, x: Array) -> list[Array]:
    sessions = [product.session(kernel, threads) for threads in (1, 2)]
    results = []
    for level in kernel.levels:
        kernel.use(level)
        assert kernel.level == level
        results += [run(session, x) for session in sessions]
    return results


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("depth", "outputs", "block"), SHAPES)
def test_products_are_right_and_the_same_on_all_levels_and_threads(
    kernel: Kernel, depth: int, outputs: int, block: int, bits: int
) -> None:
    product = Product(depth, outputs, block, bits)
    for rows in ROWS:
        x = activations(rows, depth)
        first, *others = on_every_level(kernel, product, x)
        expected = product.of_rounded(x)
        assert np.abs(first - expected).max() <= RELATIVE * np.abs(expected).max()
        assert all(np.array_equal(first.view(np.uint32), other.view(np.uint32)) for other in others)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_depend_on_its_neighbours(kernel: Kernel, bits: int) -> None:
    product = Product(256, 100, 32, bits)
    session, x = product.session(kernel), activations(33, 256)
    together = run(session, x)
    assert all(np.array_equal(run(session, x[row : row + 1])[0], together[row]) for row in range(33))


def test_many_threads_share_a_large_matrix(kernel: Kernel) -> None:
    product, x = Product(2048, 1500, 32), activations(3, 2048)
    one, four = (run(product.session(kernel, threads), x) for threads in (1, 4))
    assert np.array_equal(one, four)


@pytest.mark.parametrize("bits", BITS)
def test_it_rounds_like_onnx_runtime(kernel: Kernel, bits: int) -> None:
    """Then a bundle drifts as far with our kernel as without."""
    product, x = Product(1024, 64, 32, bits), activations(8, 1024)
    ours, exact = run(product.session(kernel), x), x.astype(np.float64) @ product.exact()
    theirs = run(product.theirs(kernel), x)
    assert np.square(ours - exact).mean() <= 1.05 * np.square(theirs - exact).mean()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [6e-8, 1e-4, 65504.0 / 8])
def test_extreme_scales(kernel: Kernel, scale: float, bits: int) -> None:
    """From float16's smallest number, which is subnormal, to its largest."""
    product, x = Product(64, 20, 32, bits, scale=scale), activations(2, 64)
    product.scales[0] = np.float16(65504.0) if scale > 1 else np.float16(6e-8)
    expected = product.of_rounded(x)
    for y in on_every_level(kernel, product, x):
        assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e20])
def test_extreme_activations(kernel: Kernel, size: float) -> None:
    product = Product(64, 20, 32)
    x = np.float32(size) * activations(2, 64)
    expected = product.of_rounded(x)
    first, *others = on_every_level(kernel, product, x)
    assert np.abs(first - expected).max() <= RELATIVE * np.abs(expected).max()
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("bits", BITS)
def test_one_large_weight_and_activation_fill_the_integers(kernel: Kernel, bits: int) -> None:
    """All products of a part have the largest size and one sign: sums in 16 bits must hold them."""
    product = Product(128, 16, 32, bits)
    for byte in (0x00, 0xFF):
        product.values[:] = byte
        product.scales[:] = 1
        for x in (np.full((1, 128), 5, np.float32), np.full((1, 128), -5, np.float32)):
            expected = product.of_rounded(x)
            assert all(np.allclose(y, expected, rtol=1e-6) for y in on_every_level(kernel, product, x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_and_the_others_are_not(kernel: Kernel, bad: float) -> None:
    product, x = Product(128, 20, 32), activations(5, 128)
    expected = product.of_rounded(x)
    x[2, 77] = bad
    for y in on_every_level(kernel, product, x):
        assert np.isnan(y[2]).all()
        others = [0, 1, 3, 4]
        assert np.abs(y[others] - expected[others]).max() <= RELATIVE * np.abs(expected).max()


def test_leading_axes_are_kept_and_may_be_empty(kernel: Kernel) -> None:
    product = Product(64, 20, 32)
    session, x = product.session(kernel), activations(6, 64)
    assert np.array_equal(run(session, x.reshape(2, 3, 64)), run(session, x).reshape(2, 3, 20))
    assert np.array_equal(run(session, x[0]), run(session, x[:1])[0])
    assert run(session, x[:0]).shape == (0, 20)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"K": 64, "N": 20, "block": 16, "bits": 4}, "block 32, 64 or 128"),
        ({"K": 60, "N": 20, "block": 32, "bits": 4}, "block 32, 64 or 128"),
        ({"K": 64, "N": 20, "block": 32, "bits": 5}, "bits 4 or 8"),
        ({"K": 64, "N": 60, "block": 32, "bits": 4}, "bytes of packed weights"),
        ({"K": 64, "N": 20, "block": 32, "bits": 8}, "bytes of packed weights"),
    ],
)
def test_wrong_sizes_are_refused_at_load(kernel: Kernel, sizes: dict[str, int], message: str) -> None:
    product = Product(64, 20, 32)
    with pytest.raises(Exception, match=message):
        session_of(product.node(**sizes), {"packed": product.packed()}, kernel)


def test_a_wrong_input_is_refused(kernel: Kernel) -> None:
    session = Product(64, 20, 32).session(kernel)
    with pytest.raises(Exception, match="the last axis of x is not 64 long"):
        run(session, activations(2, 32))


def normed(x: Array, norm: Array) -> Array:
    wide = x.astype(np.float64)
    return (wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + EPSILON) * norm).astype(np.float32)


def gate(x: Array) -> Array:
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    return (a / (1 + np.exp(-a)) * b).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("surroundings", ["norm", "gate", "sum", "norm and sum", "gate and sum"])
def test_what_surrounds_a_product(kernel: Kernel, rows: int, surroundings: str) -> None:
    """An activation at the middle between two of 255 integers may be rounded to either."""
    product, random = Product(256, 100, 32), np.random.default_rng(rows)
    gated = "gate" in surroundings
    x = 3 * activations(rows, 512 if gated else 256)
    norm = random.uniform(0.5, 1.5, 256).astype(np.float32) if "norm" in surroundings else None
    added = 10 * activations(rows, 100) if "sum" in surroundings else None
    prepared = gate(x) if gated else x if norm is None else normed(x, norm)
    expected = product.of_rounded(prepared) + (0 if added is None else added)
    sessions, results = [product.surrounded(kernel, norm, gated, added, threads) for threads in (1, 2)], list[Array]()
    for level in kernel.levels:
        kernel.use(level)
        results += [run(session, x) for session in sessions]
    largest_step = np.abs(prepared).max() / TOP * np.abs(product.exact()).max()
    assert np.abs(results[0] - expected).max() <= largest_step + RELATIVE * np.abs(expected).max()
    assert np.square(results[0] - expected).mean() <= 1e-4 * np.square(expected).mean()
    assert all(np.array_equal(results[0].view(np.uint32), other.view(np.uint32)) for other in results)


def test_a_gate_of_large_numbers(kernel: Kernel) -> None:
    product = Product(64, 20, 32)
    x = np.concatenate([np.tile(np.float32([-1e30, -100, -0.0, 0.0, 100, 1e10, 2, -2]), 8), np.ones(64, np.float32)])[
        None
    ]
    session = product.surrounded(kernel, gated=True)
    expected = product.of_rounded(np.maximum(x[:, :64], 0))  # 1e10 rounds the small ones to 0
    for level in kernel.levels:
        kernel.use(level)
        assert np.abs(run(session, x) - expected).max() <= RELATIVE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("norm", "added", "gated", "message"),
    [
        (np.ones(32), None, False, "the norm's weights"),
        (np.ones(64), None, True, "the norm's weights"),
        (None, np.ones(20), False, "does not have y's shape"),
        (None, None, True, "is not 128 long"),
    ],
)
def test_wrong_surroundings_are_refused(
    kernel: Kernel, norm: Array | None, added: Array | None, gated: bool, message: str
) -> None:
    arrays = [None if array is None else array.astype(np.float32) for array in (norm, added)]
    session = Product(64, 20, 32).surrounded(kernel, arrays[0], gated, arrays[1])
    with pytest.raises(Exception, match=message):
        run(session, activations(1, 128 if gated and norm is not None else 64))


def test_an_unknown_level_is_refused(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="portable"):
        kernel.use("sse2")
    assert kernel.level == kernel.levels[0]
