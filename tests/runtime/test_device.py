"""Buffers and their parts against numpy's slices."""

import gc
import weakref

import numpy as np
import pytest
from devices import QueueDevice
from hypothesis import given
from hypothesis import strategies as st

from pplex.runtime.device import Buffer, HostDevice, host_view

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def counted(shape: tuple[int, ...], dtype: str = "int64") -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape)).astype(dtype).reshape(shape)


@given(st.data(), shapes, st.sampled_from(["int64", "float32", "bool", "uint16"]))
def test_a_part_equals_a_numpy_slice(data: st.DataObject, shape: tuple[int, ...], dtype: str) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis]))
    count = data.draw(st.integers(0, shape[axis] - start))
    source, device = counted(shape, dtype), HostDevice()
    taken = source[(slice(None),) * axis + (slice(start, start + count),)]
    target = np.zeros(taken.shape, dtype)
    device.copy(Buffer.of(target).part(axis, 0, count), Buffer.of(source).part(axis, start, count))()
    np.testing.assert_array_equal(target, taken)
    device.clear(Buffer.of(source).part(axis, start, count))
    assert not taken.any() and (source != 0).sum() == (counted(shape, dtype) != 0).sum() - (target != 0).sum()


@given(st.data(), shapes)
def test_rows_equal_numpy_rows(data: st.DataObject, shape: tuple[int, ...]) -> None:
    row = data.draw(st.integers(0, shape[0] - 1))
    count = data.draw(st.integers(1, shape[0] - row))
    source = counted(shape)
    rows = Buffer.of(source).rows(row, count)
    assert rows.nbytes == source[row : row + count].nbytes
    np.testing.assert_array_equal(host_view(rows), source[row : row + count])


@pytest.mark.parametrize("row, count", [(-1, 1), (0, 4), (3, 1)])
def test_rows_out_of_range_raise(row: int, count: int) -> None:
    with pytest.raises(AssertionError):
        Buffer.of(counted((3, 2))).rows(row, count)
    with pytest.raises(AssertionError):
        Buffer.of(counted((2, 3))).part(1, row, count)


def test_copies_of_different_sizes_raise() -> None:
    with pytest.raises(AssertionError):
        HostDevice().copy(Buffer.of(counted((2, 3))).whole, Buffer.of(counted((3, 3))).part(0, 0, 1))


def test_a_view_keeps_its_memory_alive() -> None:
    array = counted((4,))
    alive = weakref.ref(array)
    view = host_view(Buffer.of(array).rows(1, 2))
    del array
    gc.collect()
    assert alive() is not None and view.tolist() == [2, 3]
    del view
    gc.collect()
    assert alive() is None


def test_bfloat16_is_stored_as_its_bits() -> None:
    buffer = HostDevice().zeros((2, 3), "bfloat16")
    assert (buffer.nbytes, host_view(buffer).dtype) == (12, np.uint16)


def test_host_memory_needs_no_staging() -> None:
    device = HostDevice()
    buffer = device.zeros((2, 3), "float32")
    array = device.staging(buffer)
    array[1] = 5
    assert array.ctypes.data == buffer.address and host_view(buffer)[1].tolist() == [5, 5, 5]


def test_the_device_for_tests_shows_a_missing_copy_or_wait() -> None:
    device = QueueDevice()
    buffer = device.zeros((3,), "int64")
    array = device.staging(buffer)
    array[:] = 7
    upload = device.copy(buffer.whole, Buffer.of(array).whole)
    assert not host_view(buffer).any()
    upload()
    assert not host_view(buffer).any()
    device.synchronize()
    assert host_view(buffer).tolist() == [7, 7, 7]
    replay = device.capture(upload)
    array[:] = 8
    device.synchronize()
    assert host_view(buffer).tolist() == [7, 7, 7]
    replay()
    device.synchronize()
    assert host_view(buffer).tolist() == [8, 8, 8]
