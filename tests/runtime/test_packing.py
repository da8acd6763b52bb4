"""Packed tensors: aligned, apart, and moved together by one copy."""

import numpy as np
import pytest
from devices import QueueDevice

from pplex.runtime.device import Device, HostDevice, host_view
from pplex.runtime.packing import ALIGNMENT, Key, PackedSpec, PackedTensors

SLOTS = 5
SPECS: dict[Key, PackedSpec] = {
    ("a", "flag"): PackedSpec((SLOTS,), "bool"),
    ("a", "codes"): PackedSpec((SLOTS, 1, 17), "int64"),
    ("b", "half"): PackedSpec((SLOTS, 3), "bfloat16"),
    ("b", "pcm"): PackedSpec((SLOTS, 1, 100), "float32"),
}
FLAG, CODES, HALF, PCM = SPECS


@pytest.mark.parametrize("device", [HostDevice(), QueueDevice()], ids=["host", "device"])
def test_tensors_are_aligned_and_apart(device: Device) -> None:
    packed = PackedTensors(device, SPECS)
    device.synchronize()
    first = packed.buffers[FLAG].address
    for number, (key, array) in enumerate(packed.arrays.items(), start=1):
        buffer, spec = packed.buffers[key], SPECS[key]
        assert (buffer.shape, buffer.dtype, array.shape) == (spec.shape, spec.dtype, spec.shape)
        assert (buffer.address - first) % ALIGNMENT == 0 and not array.any()
        array[...] = number
    assert [array.astype(int).max() for array in packed.arrays.values()] == [1, 2, 3, 4]
    assert all(array.astype(int).min() == array.astype(int).max() for array in packed.arrays.values())


def test_one_copy_moves_whole_tensors_and_the_first_rows_of_the_last() -> None:
    device = QueueDevice()
    packed = PackedTensors(device, SPECS)
    for array in packed.arrays.values():
        array[...] = 1
    device.copy(*packed.span([PCM, CODES], batch=2))()
    device.synchronize()
    moved = {key: host_view(buffer).astype(int) for key, buffer in packed.buffers.items()}
    assert not moved[FLAG].any() and moved[CODES].all() and moved[HALF].all()
    assert moved[PCM][:2].all() and not moved[PCM][2:].any()
    assert device.copied[-1] == "up" and device.copied.count("up") == 1


def test_the_host_shares_memory_and_needs_no_copy() -> None:
    packed = PackedTensors(HostDevice(), SPECS)
    packed.arrays[PCM][3] = 7
    np.testing.assert_array_equal(host_view(packed.buffers[PCM]), packed.arrays[PCM])
    target, source = packed.span([FLAG, PCM], SLOTS)
    assert target == source
