"""A graph's state: written in place or carried from call to call, and only in the rows of the call."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pplex.runtime.arrays import Array
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import Buffer, HostDevice, host_view
from pplex.runtime.errors import BundleError
from pplex.runtime.graphs import graph_specs
from pplex.runtime.ort import OnnxRuntimeExecutor
from pplex.runtime.stages import Stages

SLOTS = 3
CODECS = ("mimi_encode", "mimi_decode")
each_codec = pytest.mark.parametrize("graph", CODECS)


@pytest.fixture
def stages(tiny_bundle: Bundle) -> Stages:
    return Stages(tiny_bundle, SLOTS)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def states(stages: Stages, graph: str) -> dict[str, Array]:
    return {name: host_view(buffer) for name, buffer in stages.engines[graph].state.items()}


def rings(stages: Stages, graph: str) -> dict[str, Array]:
    return {s.name: states(stages, graph)[s.name] for s in stages.engines[graph].spec.state if s.ring}


def carried(stages: Stages, graph: str) -> dict[str, Array]:
    return {s.name: states(stages, graph)[s.name] for s in stages.engines[graph].spec.state if not s.ring}


def bound(arrays: dict[str, Array]) -> dict[str, Buffer]:
    return {name: Buffer.of(array) for name, array in arrays.items()}


def copies(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def changed_entries(before: Array, after: Array) -> set[tuple[int, int]]:
    """(slot, entry) of all differences in a ring [S, H, C, D]."""
    slots, entries = np.nonzero((before != after).any(axis=(1, 3)))
    return set(zip(slots.tolist(), entries.tolist(), strict=True))


def fill(stages: Stages, random: np.random.Generator) -> None:
    """Random values in every state of every slot, as after a long conversation; the codecs' rings are full."""
    for graph in stages.engines:
        for name, buffer in states(stages, graph).items():
            buffer[...] = 1000 if name == "position" else random.normal(size=buffer.shape)


def feed(stages: Stages, random: np.random.Generator, rows: Sequence[int]) -> None:
    """The next input frame of a codec. Only `rows` are active; the other rows get a frame without effect."""
    stages.pcm_in[...] = random.normal(0, 0.1, stages.pcm_in.shape)
    stages.agent_codes[...] = random.integers(0, 2048, stages.agent_codes.shape)
    stages.active[...] = False
    stages.active[list(rows)] = True


def result(stages: Stages, graph: str) -> Array:
    return {"mimi_encode": stages.user_codes, "mimi_decode": stages.pcm_out}[graph].copy()


def test_every_state_has_a_row_per_slot(stages: Stages) -> None:
    for graph in stages.engines:
        for state in stages.engines[graph].spec.state:
            buffer = states(stages, graph)[state.name]
            assert (buffer.shape[0], buffer.dtype, buffer.ndim) == (SLOTS, state.dtype, len(state.shape))
    shapes = {buffer.shape for buffer in rings(stages, "temporal").values()}
    assert shapes == {(SLOTS, 2, 96, 16)}


def test_temporal_writes_its_ring_in_place_and_leaves_the_last_entry_empty(
    stages: Stages, random: np.random.Generator
) -> None:
    buffers, in_use = rings(stages, "temporal"), 95
    addresses = {name: buffer.ctypes.data for name, buffer in buffers.items()}
    for position in (0, 1, 2, 94, 95, 96, 189, 190, 1000 * in_use + 5):
        stages.codes[1, 0] = random.integers(0, 400, stages.codes.shape[2])
        stages.position[1] = position
        before = copies(buffers)
        stages.run("temporal", 1, row=1)
        for name, buffer in buffers.items():
            assert changed_entries(before[name], buffer) == {(1, position % in_use)}, (name, position)
    assert {name: buffer.ctypes.data for name, buffer in rings(stages, "temporal").items()} == addresses


@each_codec
def test_codec_writes_two_entries_a_frame_in_place(stages: Stages, random: np.random.Generator, graph: str) -> None:
    buffers, capacity = rings(stages, graph), 24
    for frame in range(30):
        feed(stages, random, rows=[0, 2])
        before = copies(buffers)
        stages.run(graph, SLOTS)
        written = {(2 * frame + i) % capacity for i in range(2)}
        expected = {(slot, entry) for slot in (0, 2) for entry in written}
        for name, buffer in buffers.items():
            changed = changed_entries(before[name], buffer)
            # The inactive slot rewrites its own next entries, which it may.
            assert {(slot, entry) for slot, entry in changed if slot != 1} == expected, (name, frame)
            assert {entry for slot, entry in changed if slot == 1} <= {0, 1}, (name, frame)


@each_codec
def test_carried_state_is_copied_back(stages: Stages, random: np.random.Generator, graph: str) -> None:
    state = carried(stages, graph)
    addresses = {name: buffer.ctypes.data for name, buffer in state.items()}
    for frame in range(1, 4):
        feed(stages, random, rows=[0, 1, 2])
        before = copies(state)
        stages.run(graph, SLOTS)
        assert (state["position"] == 2 * frame).all()
        for name, buffer in state.items():
            assert (buffer != before[name]).reshape(SLOTS, -1).any(axis=1).all(), name
    assert {name: buffer.ctypes.data for name, buffer in carried(stages, graph).items()} == addresses
    if graph == "mimi_encode":  # the first convolution's tail is the last six samples
        np.testing.assert_array_equal(state["encoder.model.0.conv.conv"][:, 0], stages.pcm_in[:, 0, -6:])


@each_codec
def test_inactive_slot_keeps_its_state_bit_for_bit(stages: Stages, random: np.random.Generator, graph: str) -> None:
    fill(stages, random)
    before = copies(carried(stages, graph)), copies(rings(stages, graph))
    for _ in range(3):
        feed(stages, random, rows=[0])
        stages.run(graph, SLOTS)
    for name, buffer in carried(stages, graph).items():
        np.testing.assert_array_equal(buffer[1:], before[0][name][1:], err_msg=name)
        assert (buffer[0] != before[0][name][0]).any(), name
    next_entries = [1000 % 24, 1001 % 24]  # its own next two, written again when it is active
    for name, buffer in rings(stages, graph).items():
        kept = np.delete(buffer[1:], next_entries, axis=2)
        np.testing.assert_array_equal(kept, np.delete(before[1][name][1:], next_entries, axis=2), err_msg=name)


@each_codec
@pytest.mark.parametrize("frames_before", [0, 5, 15])  # the ring is full after 12
def test_a_pause_changes_nothing(tiny_bundle: Bundle, graph: str, frames_before: int) -> None:
    """One slot pauses in one of two runs, while the others continue."""
    frames = frames_before + 8

    def play(pause: int) -> Iterator[Array]:
        own, others = np.random.default_rng(1), np.random.default_rng(2)
        stages = Stages(tiny_bundle, SLOTS)
        for frame in range(frames + pause):
            paused = frames_before <= frame < frames_before + pause
            feed(stages, others, rows=[0, 2] if paused else [0, 1, 2])
            if not paused:
                stages.pcm_in[1] = own.normal(0, 0.1, stages.pcm_in.shape[1:])
                stages.agent_codes[1] = own.integers(0, 2048, 8)
            stages.run(graph, SLOTS)
            if not paused:
                yield result(stages, graph)[1]

    np.testing.assert_array_equal(list(play(pause=6)), list(play(pause=0)))


def test_priming_a_row_leaves_every_other_row_untouched(stages: Stages, random: np.random.Generator) -> None:
    fill(stages, random)
    state = {(graph, name): buffer for graph in stages.engines for name, buffer in states(stages, graph).items()}
    host = {
        (graph, name): buffer[[0, 2]] for graph in stages.engines for name, buffer in stages.tensors(graph).items()
    }  # copies
    before = {key: buffer.copy() for key, buffer in state.items()}
    codes = random.integers(0, 400, (10, 17))
    stages.run_forced(1, 20, codes, np.zeros((10, 32), np.float32))
    for (graph, name), buffer in state.items():
        if graph == "temporal":
            assert changed_entries(before[graph, name], buffer) == {(1, entry) for entry in range(20, 30)}, name
        else:
            np.testing.assert_array_equal(buffer, before[graph, name], err_msg=name)
    for graph in stages.engines:
        for name, buffer in stages.tensors(graph).items():
            np.testing.assert_array_equal(buffer[[0, 2]], host[graph, name], err_msg=name)


@each_codec
def test_running_one_row_leaves_every_other_row_untouched(
    stages: Stages, random: np.random.Generator, graph: str
) -> None:
    fill(stages, random)
    feed(stages, random, rows=[0, 1, 2])
    for row in (1, 0, 2):
        others = [other for other in range(SLOTS) if other != row]
        before, outputs = copies(states(stages, graph)), result(stages, graph)
        stages.run(graph, 1, row)
        for name, buffer in states(stages, graph).items():
            np.testing.assert_array_equal(buffer[others], before[name][others], err_msg=name)
            assert (buffer[row] != before[name][row]).any(), name
        np.testing.assert_array_equal(result(stages, graph)[others], outputs[others])
        assert (result(stages, graph)[row] != outputs[row]).any()


@pytest.mark.parametrize("steps", [1, 40, 96, 500])
def test_saved_rings_are_copies_that_fit_any_slot(stages: Stages, random: np.random.Generator, steps: int) -> None:
    fill(stages, random)
    temporal, kept = stages.engines["temporal"], min(steps, 96)
    saved = temporal.save(0, steps)
    original = copies(rings(stages, "temporal"))
    assert saved.keys() == original.keys()
    for name, buffer in rings(stages, "temporal").items():
        np.testing.assert_array_equal(saved[name], original[name][0, :, :kept], err_msg=name)
        buffer[0] = 0
    temporal.restore(2, saved)
    for name, buffer in rings(stages, "temporal").items():
        np.testing.assert_array_equal(buffer[2, :, :kept], original[name][0, :, :kept], err_msg=name)
        np.testing.assert_array_equal(buffer[2, :, kept:], original[name][2, :, kept:], err_msg=name)
        np.testing.assert_array_equal(buffer[1], original[name][1], err_msg=name)
        assert not buffer[0].any()


@pytest.mark.parametrize("steps", [12, 1000])
def test_reset_clears_what_was_written_in_that_slot_only(
    stages: Stages, random: np.random.Generator, steps: int
) -> None:
    fill(stages, random)
    before = {graph: copies(states(stages, graph)) for graph in stages.engines}
    stages.reset(1, steps)
    for graph in stages.engines:
        written = 2 * steps if graph in CODECS else steps
        for name, buffer in rings(stages, graph).items():
            assert not buffer[1, :, :written].any()
            np.testing.assert_array_equal(buffer[1, :, written:], before[graph][name][1, :, written:], err_msg=name)
        for name, buffer in carried(stages, graph).items():
            assert not buffer[1].any(), name
        for name, buffer in states(stages, graph).items():
            np.testing.assert_array_equal(buffer[[0, 2]], before[graph][name][[0, 2]], err_msg=name)


def test_outputs_are_fetched_where_a_buffer_is_given(tiny_bundle: Bundle, stages: Stages) -> None:
    """The logits of the first rows, and their token."""
    logits = np.full((2, tiny_bundle.config.text_card), np.nan, np.float32)
    tensors = {name: array[:2] for name, array in {**stages.tensors("temporal"), "text_logits": logits}.items()}
    stages.codes[0, 0], stages.codes[1, 0] = 5, 6
    stages.forced_text[:] = -1
    call = stages.engines["temporal"].bind(bound(tensors), 0, 2)
    call()
    assert np.isfinite(logits).all() and (logits[0] != logits[1]).any()
    np.testing.assert_array_equal(stages.text_token[:2], logits.argmax(axis=1))  # top-k is 1 from the start


def test_a_call_keeps_its_buffers_alive(stages: Stages) -> None:
    pcm = np.zeros((1, 1, 1920), np.float32)
    alive = weakref.ref(pcm)
    tensors = {"pcm": pcm, "active": np.ones(1, np.bool_), "codes": np.zeros((1, 8), np.int64)}
    call = stages.engines["mimi_encode"].bind(bound(tensors), 0, 1)
    del pcm, tensors
    gc.collect()
    assert alive() is not None
    call()
    del call
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "pcm", [np.zeros((1, 1, 1920)), np.zeros((1, 1, 3840), np.float32)[..., ::2]], ids=["float64", "strided"]
)
def test_a_buffer_that_cannot_be_bound_raises(stages: Stages, pcm: Array) -> None:
    tensors = {"pcm": pcm, "active": np.ones(1, np.bool_), "codes": np.zeros((1, 8), np.int64)}
    with pytest.raises(AssertionError):
        stages.engines["mimi_encode"].bind(bound(tensors), 0, 1)


def test_graph_that_does_not_load_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "depth.onnx"
    path.write_bytes(tiny_bundle.graph_path("depth").read_bytes()[:-1000])
    with pytest.raises(BundleError, match=r"ONNX Runtime \d+\.\d+\.\d+ cannot load .*depth\.onnx"):
        OnnxRuntimeExecutor(path, graph_specs(tiny_bundle.config)["depth"], HostDevice())


@pytest.mark.parametrize("graph", [*CODECS, "temporal"])
@pytest.mark.parametrize("batch, row", [(SLOTS, 0), (1, 2)])
def test_tensors_that_are_not_aligned_are_moved_and_moved_back(
    tiny_bundle: Bundle, graph: str, batch: int, row: int
) -> None:
    """Move every tensor of one of two equal stages, rings too, to unaligned addresses, as in the first page of memory."""
    played = Stages(tiny_bundle, SLOTS, threads=1), Stages(tiny_bundle, SLOTS, threads=1)
    played[1].executors[graph].alignment = 1 << 60
    for stages in played:
        random = np.random.default_rng(5)
        for step in range(3):
            feed(stages, random, rows=[0, 2])
            stages.codes[...] = random.integers(0, 400, stages.codes.shape)
            stages.position[...] = step
            stages.run(graph, batch, row)
    for name, state in states(played[0], graph).items():
        assert state.any()
        np.testing.assert_array_equal(states(played[1], graph)[name], state, err_msg=name)
    for name, array in played[0].tensors(graph).items():
        np.testing.assert_array_equal(played[1].tensors(graph)[name], array, err_msg=name)
