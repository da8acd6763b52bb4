"""The memory of a slot against the allocated buffers, and the error if slots do not fit."""

import pytest
from devices import QueueDevice

from pplex.runtime.backend import host_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.errors import GpuMemoryError
from pplex.runtime.graphs import MAX_STEPS, graph_specs
from pplex.runtime.memory import RESERVE, check_memory, slot_nbytes
from pplex.runtime.packing import ALIGNMENT
from pplex.runtime.precision import FP32
from pplex.runtime.stages import Stages

GB = 10**9
EXCHANGED = 19  # inputs and outputs between host and device: each starts at a multiple of ALIGNMENT


def test_slot_size_equals_its_allocations(tiny_bundle: Bundle) -> None:
    allocated = []
    for slots in (1, 4):
        device = QueueDevice()
        before = device.free
        Stages(tiny_bundle, slots, device=host_backend(device, threads=1), logits=True)
        allocated.append(before - device.free)
    counted = slot_nbytes(tiny_bundle.specs.values(), tiny_bundle.config.temporal.capacity)
    # The depth graph's hidden state and text token, and the decoder's `active`, are the buffers of other graphs.
    assert (allocated[1] - allocated[0]) / 3 == pytest.approx(counted, rel=0.01)
    forced = MAX_STEPS * (17 * 8 + tiny_bundle.config.temporal.dim * 4)
    fixed = allocated[0] - (allocated[1] - allocated[0]) / 3
    assert fixed == pytest.approx(forced + EXCHANGED * ALIGNMENT / 2, abs=EXCHANGED * ALIGNMENT / 2 + 0.01 * forced)


def test_rings_are_most_of_the_released_models_memory() -> None:
    rings = 2 * 32 * 32 * 3000 * 128 * 2  # keys and values, layers, heads, steps, head size, bytes of a float16
    half = slot_nbytes(graph_specs(RELEASED, {**FP32, "temporal": "fp16"}).values(), 3000)
    assert rings < half < 1.02 * rings
    assert slot_nbytes(graph_specs(RELEASED, {**FP32, "temporal": "bf16"}).values(), 3000) == half
    assert half - slot_nbytes(graph_specs(RELEASED, {**FP32, "temporal": "fp16"}).values(), 1500) == rings // 2


@pytest.mark.parametrize("slots, free", [(1, 5 * GB + RESERVE), (5, 9 * GB + RESERVE), (100, None)])
def test_slots_that_fit_are_accepted(slots: int, free: int | None) -> None:
    check_memory(free, per_slot=GB, fixed=4 * GB, slots=slots, capacity=3000)


@pytest.mark.parametrize("free, fitting", [(9 * GB + RESERVE - 1, 4), (5 * GB + RESERVE, 1)])
def test_the_refusal_says_how_many_fit(free: int, fitting: int) -> None:
    with pytest.raises(GpuMemoryError) as refusal:
        check_memory(free, per_slot=GB, fixed=4 * GB, slots=5, capacity=3000)
    message = str(refusal.value)
    assert message.startswith(
        "5 slots of 3000 steps need 9.27 GB of GPU memory: 1.00 GB for each slot and 4.27 GB for all else."
    )
    assert f"so {fitting} slots fit. Load the bundle with slots={fitting}" in message


def test_the_refusal_if_no_slot_fits() -> None:
    with pytest.raises(GpuMemoryError, match=r"so 0 slots fit\. Build a smaller precision: pplex-export build"):
        check_memory(GB, per_slot=GB, fixed=4 * GB, slots=1, capacity=3000)
