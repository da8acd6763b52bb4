"""Attention to rings and to steps: against exact results, the same bits with all instructions and numbers of threads."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from our_attentions import Attention, attention_session, exact_steps, steps_session

from pplex import kernels
from pplex.kernels import WIDTHS, Kernel
from pplex.runtime.arrays import Array
from pplex.runtime.kernel_choice import AUTO

HALF = 2**-11  # float16's relative rounding


def on_every_level(kernel: Kernel, attention: Attention) -> list[Array]:
    sessions = [attention_session(kernel, threads) for threads in (1, 2)]
    results = []
    for level in kernel.levels:
        kernel.use(level)
        results += [attention.run(session) for session in sessions]
    return results


def is_exact(y: Array, attention: Attention) -> bool:
    """Whether y is the exact result, rounded to float16, up to float32's roundings."""
    expected = attention.exact()
    return bool((np.abs(y - expected) <= HALF * np.abs(expected) + 3e-6 * np.abs(attention.v).max()).all())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(5, 17, 40), (511,), (512,), (513,), (1500, 6)])
def test_it_is_right_and_the_same_on_all_levels_and_threads(
    kernel: Kernel, width: int, steps: int, lengths: tuple[int, ...]
) -> None:
    """Rings are read 512 entries at a time."""
    attention = Attention.random(lengths, steps=steps, width=width, entries=max(lengths) + 3)
    first, *others = on_every_level(kernel, attention)
    assert first.dtype == np.float16 and is_exact(first, attention)
    assert all(np.array_equal(first.view(np.uint16), other.view(np.uint16)) for other in others)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    steps=st.integers(1, 4),
    width=st.sampled_from(WIDTHS),
    scale=st.sampled_from([0.0, 0.01, 1.0, 30.0, 1000.0]),
)
def test_any_lengths_and_sizes_of_scores(lengths: list[int], steps: int, width: int, scale: float) -> None:
    path = kernels.compiled()
    if path is None:
        pytest.skip("our kernels were not compiled: apt-get install g++")
    kernel = kernels.load(path)
    attention = Attention.random(tuple(lengths), steps=steps, width=width, entries=60, scale=scale)
    try:
        first, *others = on_every_level(kernel, attention)
    finally:
        kernel.use(AUTO)
    # A score of 10,000 has an error of 0.001 in float32, and its weight a relative error of the same size.
    expected, error = attention.exact(), max(3e-6, 2e-7 * 8 * scale * np.sqrt(width))
    assert np.abs(first - expected).max(initial=0) <= HALF * np.abs(expected).max() + error * np.abs(attention.v).max()
    assert all(np.array_equal(first.view(np.uint16), other.view(np.uint16)) for other in others)


def test_entries_behind_the_length_are_not_read(kernel: Kernel) -> None:
    attention = Attention.random((7, 30), steps=3)
    expected = attention.run(attention_session(kernel))
    k, v = attention.k.copy(), attention.v.copy()
    for ring in (k, v):
        ring[0, :, 7:] = ring[1, :, 30:] = np.nan
    assert np.array_equal(replace(attention, k=k, v=v).run(attention_session(kernel)), expected)
    # The newest entry belongs to the last query only.
    k[0, :, 6] = np.nan
    y = replace(attention, k=k, v=v).run(attention_session(kernel))
    assert np.isnan(y[0, :, 2]).all() and np.array_equal(y[0, :, :2], expected[0, :, :2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_reaches_its_own_number_only(kernel: Kernel, bad: float) -> None:
    attention = Attention.random((20,))
    attention.v[0, 1, 3, 5] = bad
    for y in on_every_level(kernel, attention):
        assert not np.isfinite(y[0, 1, 0, 5]) and np.isfinite(y).sum() == y.size - 1


def test_numbers_beyond_float16s_normal_ones(kernel: Kernel) -> None:
    """Subnormal values, the largest ones, and both zeros."""
    attention = Attention.random((40,))
    attention.v[0, :, :, :8] = np.float16(6e-8) * np.arange(1, 9, dtype=np.float16)
    attention.v[0, :, :, 8:12] = 65504
    attention.v[0, :, :, 12:] = [0.0, -0.0, -65504, -6e-8]
    first, *others = on_every_level(kernel, attention)
    assert np.abs(first - attention.v[:, :, :1]).max() <= 6e-8
    assert all(np.array_equal(first.view(np.uint16), other.view(np.uint16)) for other in others)


def test_nothing_to_read_gives_zero(kernel: Kernel) -> None:
    for y in on_every_level(kernel, Attention.random((0, 1), steps=2)):
        assert not y[0].any() and not y[1, :, 0].any() and y[1, :, 1].any()
    assert Attention.random((3,), heads=0).run(attention_session(kernel)).shape == (1, 0, 1, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.array([41])}, "larger than the ring"),
        ({"lengths": np.array([-1])}, "negative"),
        ({"lengths": np.array([1, 2])}, "one number for each slot"),
        ({"q": np.zeros((1, 3, 1, 16), np.float16)}, "different slots, heads or widths"),
        ({"q": np.zeros((1, 2, 16), np.float16)}, "4 axes"),
        ({"v": np.zeros((1, 2, 39, 16), np.float16)}, "k and v have different shapes"),
    ],
)
def test_wrong_inputs_are_refused(kernel: Kernel, changes: dict[str, Array], message: str) -> None:
    with pytest.raises(Exception, match=message):
        replace(Attention.random((40,)), **changes).run(attention_session(kernel))


def test_a_width_that_no_level_reads_is_refused(kernel: Kernel) -> None:
    with pytest.raises(Exception, match="16, 32, 64 or 128 wide"):
        Attention.random((40,), width=24).run(attention_session(kernel))


def steps_of(count: int, slots: int = 2, heads: int = 3, width: int = 64) -> list[Array]:
    random = np.random.default_rng(count)
    return [random.standard_normal((slots, 1, 3 * heads * width)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("count", "slots"), [(1, 1), (2, 3), (8, 1), (8, 5), (17, 2)])
def test_steps_are_right_and_the_same_on_all_levels_and_threads(
    kernel: Kernel, width: int, count: int, slots: int
) -> None:
    steps, results = steps_of(count, slots, width=width), list[Array]()
    inputs = {f"x{i}": step for i, step in enumerate(steps)}
    sessions = [steps_session(kernel, 3, count, threads) for threads in (1, 2)]
    for level in kernel.levels:
        kernel.use(level)
        results += [session.run(None, inputs)[0] for session in sessions]
    assert np.abs(results[0] - exact_steps(steps, 3)).max() <= 3e-6
    assert all(np.array_equal(results[0].view(np.uint32), other.view(np.uint32)) for other in results)


@pytest.mark.parametrize(
    ("shapes", "heads", "message"),
    [
        ([(1, 1, 96), (2, 1, 96)], 2, "different shapes"),
        ([(1, 2, 96)], 2, "is not"),
        ([(1, 1, 98)], 2, "is not"),
        ([(1, 1, 72)], 1, "16, 32, 64 or 128 wide"),
    ],
)
def test_wrong_steps_are_refused(kernel: Kernel, shapes: list[tuple[int, ...]], heads: int, message: str) -> None:
    session = steps_session(kernel, heads, len(shapes))
    with pytest.raises(Exception, match=message):
        session.run(None, {f"x{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)})


def test_no_heads_are_refused_at_load(kernel: Kernel) -> None:
    with pytest.raises(Exception, match="heads must be positive"):
        steps_session(kernel, 0, 1)
