"""The copies of a frame on a device, and its waits: mimi_encode runs at the same time as the other graphs."""

from collections.abc import Iterator

import numpy as np
import pytest
from devices import QueueDevice

from pplex.runtime.backend import host_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.device import Buffer, host_view
from pplex.runtime.errors import GpuError
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


@pytest.mark.parametrize("missing", ["before", "after"])
def test_a_missing_wait_changes_a_token(
    tiny_bundle: Bundle, expected: list[tuple[list[int], bytes]], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(tiny_bundle, 1, device=host_backend(UncapturedDevice(), threads=1))
    leave_out(missing, monkeypatch)
    assert [tokens for tokens, _ in talk(runtime)] != [tokens for tokens, _ in expected]


@pytest.mark.parametrize("missing", ["before", "after"])
def test_a_capture_without_a_wait_is_refused(
    tiny_bundle: Bundle, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out(missing, monkeypatch)
    with pytest.raises(GpuError, match=r"cudaErrorStreamCapture(Isolation|Unjoined)"):
        Runtime(tiny_bundle, 1, device=host_backend(QueueDevice(), threads=1))


def leave_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out one of the two waits of `beside`: of the second stream before its work, of the first one after it."""
    wait = CudaDevice._wait

    def some(device: CudaDevice, waiting: object, event: object, other: object) -> None:
        if (waiting is device._second) != (missing == "before"):
            wait(device, waiting, event, other)  # type: ignore[arg-type]

    monkeypatch.setattr(CudaDevice, "_wait", some)


def test_work_runs_at_the_same_time_between_earlier_and_later_work() -> None:
    """What runs beside neither waits for the other work nor is waited for by it."""
    device, orders = QueueDevice(), set[str]()
    for _ in range(2):
        order = list[str]()
        device.enqueue(lambda order=order: order.append("before"))
        device.beside(
            lambda order=order: device.enqueue(lambda: order.append("aside")),
            lambda order=order: device.enqueue(lambda: order.append("work")),
        )
        device.enqueue(lambda order=order: order.append("after"))
        device.synchronize()
        orders.add(" ".join(order))
    assert orders == {"before aside work after", "before work aside after"}


def test_copies_go_to_the_queue_that_is_in_use_when_they_are_called() -> None:
    """A copy is prepared once, and may be called beside other work."""
    device = QueueDevice()
    buffer, array = device.zeros((4,), "int64"), np.arange(4)
    upload = device.copy(buffer.whole, Buffer.of(array).whole)
    device.beside(upload, lambda: device.enqueue(lambda: None))
    device.clear(buffer.part(0, 0, 2))
    device.synchronize()
    assert host_view(buffer).tolist() == [0, 0, 2, 3]
