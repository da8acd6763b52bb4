"""The copies of a frame on a device: one up, one down, and those that pass codes from graph to graph."""

from collections.abc import Iterator

import numpy as np
import pytest
from devices import QueueDevice

from pplex.runtime.backend import host_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import host_view
from pplex.runtime.frame import FrameRunner
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages

FRAMES = 8
PCM = np.random.default_rng(1).normal(0, 0.1, (FRAMES, 1920)).astype(np.float32)
CODES = np.random.default_rng(2).integers(0, 2048, (FRAMES, 8))


class UncapturedDevice(QueueDevice):
    """It enqueues a frame call by call."""

    captures = False


def talk(runtime: Runtime) -> Iterator[tuple[list[int], bytes]]:
    """The replies of a conversation."""
    with runtime.open("NATF0", "Hello", seed=1) as session:
        for frame in PCM:
            reply = session.step(frame)
            yield reply.tokens.tolist(), reply.pcm.tobytes()


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> list[tuple[list[int], bytes]]:
    """The same conversation on the host."""
    return list(talk(Runtime(tiny_bundle, 1, threads=1, device="cpu")))


@pytest.mark.parametrize("kind", [QueueDevice, UncapturedDevice])
@pytest.mark.parametrize("speaking", [1, 2, 3])
def test_a_frame_takes_one_copy_up_and_one_down(tiny_bundle: Bundle, kind: type[QueueDevice], speaking: int) -> None:
    """First and last. The copies in between stay on the device."""
    device = kind()
    runtime = Runtime(tiny_bundle, 3, device=host_backend(device, threads=1))
    sessions = [runtime.open(None, "Hello", seed=i) for i in range(speaking)]
    for step in (
        lambda: runtime.step(dict.fromkeys(sessions, PCM[0])),
        lambda: runtime.step_codes(dict.fromkeys(sessions, CODES[0])),
    ):
        for _ in range(3):  # prepared, captured, replayed
            before = len(device.copied)
            step()
            first, *between, last = device.copied[before:]
            assert (first, set(between) - {"within"}, last) == ("up", set(), "down")


def test_rows_that_a_frame_does_not_run_keep_their_values(tiny_bundle: Bundle) -> None:
    """A frame copies all rows of small tensors. Those of a newcomer who is being primed must stay as they are."""
    stages = Stages(tiny_bundle, 3, device=host_backend(QueueDevice(), threads=1), logits=True)
    stages.active[:], stages.pcm_in[:, 0], stages.agent_codes[:] = True, PCM[:3], CODES[:3]
    stages.forced_text[:], stages.forced_audio[:] = -1, -1
    stages.run_frame(3)
    stages.pcm_in[2, 0] = PCM[5]
    stages.run("mimi_encode", 1, row=2)
    arrays = {f"{graph}.{name}": a for graph in stages.engines for name, a in stages.tensors(graph).items()}
    before = {name: array.copy() for name, array in arrays.items()}
    stages.codes[0, 0] += 1
    for frame in (4, 6, 7):
        stages.pcm_in[0, 0] = PCM[frame]
        stages.run_frame(1)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[1:], before[name][1:], err_msg=name)
    assert (stages.user_codes[0] != before["mimi_encode.codes"][0]).any()


@pytest.mark.parametrize("kind", [QueueDevice, UncapturedDevice])
def test_a_conversation_equals_that_on_the_host(
    tiny_bundle: Bundle, kind: type[QueueDevice], expected: list[tuple[list[int], bytes]]
) -> None:
    runtime = Runtime(tiny_bundle, 1, device=host_backend(kind(), threads=1))
    assert list(talk(runtime)) == expected


@pytest.mark.parametrize("missing", ["_just_heard", "_just_sampled"])
def test_a_missing_copy_changes_the_reply(
    tiny_bundle: Bundle, expected: list[tuple[list[int], bytes]], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the codes that were just encoded to the model, or of those just sampled to the decoder."""
    monkeypatch.setattr(FrameRunner, missing, lambda runner, batch: iter(()))
    runtime = Runtime(tiny_bundle, 1, device=host_backend(UncapturedDevice(), threads=1))
    assert list(talk(runtime)) != expected


def test_codes_are_copied_after_the_graph_that_computes_them_and_before_the_graph_that_reads_them(
    tiny_bundle: Bundle,
) -> None:
    """The model's input of this frame has the codes of this frame, in every row."""
    device = QueueDevice()
    runtime = Runtime(tiny_bundle, 3, device=host_backend(device, threads=1))
    sessions = [runtime.open(None, "Hello", seed=i) for i in range(3)]
    read = runtime.stages.buffers.by_graph["temporal"]["codes"]
    for frame in range(4):
        replies = runtime.step({session: PCM[(frame + i) % FRAMES] for i, session in enumerate(sessions)})
        for session in sessions:
            codes = host_view(read)[session.row, 0]
            assert codes[9] == runtime.stages.user_codes[session.row, 0] == replies[session].tokens[9]
    assert len(set(host_view(read)[:, 0, 9].tolist())) > 1
