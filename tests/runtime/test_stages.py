"""A frame on a device gives the same conversations as on the host, through uploads, captured calls and downloads."""

import gc
import resource
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import QueueDevice
from folders import TINY
from ties import assert_same_up_to_a_tie, with_standings

from pplex.runtime import kv_cache
from pplex.runtime.backend import Backend, host_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.device import Buffer, HostDevice, host_view
from pplex.runtime.kv_cache import ring_lengths
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Runtime, Session
from pplex.runtime.stages import Stages
from pplex.validate.golden import check_golden

SLOTS = 3
FRAMES = 30
PCM = np.random.default_rng(1).normal(0, 0.1, (SLOTS, FRAMES, 1920)).astype(np.float32)
CODES = np.random.default_rng(2).integers(0, 2048, (SLOTS, FRAMES, 8))
WAV = str(TINY / "checkpoint/voices/synthetic.wav")
WAYS: list[dict[str, Any]] = [
    {"voice": "NATF0", "persona": "Hello there friend", "seed": 1},
    {"voice": WAV, "persona": list(range(4, 40)), "seed": 2, "sampling": GREEDY},
    {"voice": None, "persona": "", "seed": 3, "sampling": Sampling(2.0, 512, 2.0, 512)},
]

Place = Callable[[Bundle], tuple[Bundle, Backend]]


def device_of(runtime: Runtime) -> QueueDevice:
    device = runtime.stages.device
    assert isinstance(device, QueueDevice)
    return device


def conversation(runtime: Runtime) -> list[tuple[int, list[int], bytes, str]]:
    """Replies, with their slots, of three sessions that open, pause, close and open again."""
    said, sessions = [], dict[int, Session]()
    for frame in range(FRAMES):
        for i, way in enumerate(WAYS):
            if frame in (0, 3 * i, 20 + i) and i not in sessions:
                sessions[i] = runtime.open(**way)
        if frame == 18:
            sessions.pop(0).close()
        speaking = {session: PCM[i, frame] for i, session in sessions.items() if (frame + i) % 4}
        for session, reply in runtime.step(speaking).items():
            said.append((session.row, reply.tokens.tolist(), reply.pcm.tobytes(), reply.text))
        if frame % 10 == 5:
            tokens = runtime.step_codes({session: CODES[i, frame] for i, session in sessions.items()})
            said += [(session.row, row.tolist(), b"", "") for session, row in tokens.items()]
    for session in sessions.values():
        session.close()
    return said


def test_golden_checks_pass_on_every_backend(place: Place, tiny_bundle: Bundle) -> None:
    bundle, backend = place(tiny_bundle)
    checks = list(check_golden(bundle, TINY, backend))
    assert len(checks) == 17 and all(check.passed for check in checks), checks


def test_conversations_equal_those_on_the_host(place: Place, tiny_bundle: Bundle) -> None:
    expected = conversation(Runtime(tiny_bundle, SLOTS, threads=1, device="cpu"))
    bundle, backend = place(tiny_bundle)
    assert conversation(Runtime(bundle, SLOTS, device=backend)) == expected


def test_a_frame_takes_one_replay_and_one_wait(place: Place, tiny_bundle: Bundle) -> None:
    bundle, backend = place(tiny_bundle)
    runtime = Runtime(bundle, 2, device=backend)
    device = device_of(runtime)
    with runtime.open("NATF0", "Hello", seed=0) as first, runtime.open(None, seed=0) as second:
        for speaking in ([first], [first, second], [second]):
            before = device.replays, device.synchronized
            runtime.step(dict.fromkeys(speaking, PCM[0, 0]))
            captured = all(executor.capturable for executor in runtime.stages.executors.values())
            assert (device.replays - before[0], device.synchronized - before[1]) == (int(captured), 1)


def test_closing_clears_everything_on_the_device(place: Place, tiny_bundle: Bundle) -> None:
    bundle, backend = place(tiny_bundle)
    runtime = Runtime(bundle, 1, device=backend)
    for voice in ("NATF0", WAV):
        with runtime.open(voice, "Hello", seed=0) as session:
            for frame in PCM[0, :15]:
                session.step(frame)
        runtime.stages.device.synchronize()
        for graph, engine in runtime.stages.engines.items():
            for name, buffer in engine.state.items():
                assert not host_view(buffer).any(), (graph, name)


def test_a_saved_prompt_is_uploaded_again(place: Place, tiny_bundle: Bundle) -> None:
    bundle, backend = place(tiny_bundle)
    runtime = Runtime(bundle, 2, device=backend)
    with runtime.open("NATM1", "Hello", seed=5) as first:
        expected = [first.step(frame).tokens.tolist() for frame in PCM[0, :8]]
        with runtime.open("NATM1", "Hello", seed=5) as second:
            assert second.row == 1
            assert [second.step(frame).tokens.tolist() for frame in PCM[0, :8]] == expected


@pytest.mark.parametrize(
    "delays",
    [
        (0,) * 17,
        (0, 0, 1, 2, 2, 1, 2, 2, 0, 0, 2, 1, 2, 2, 1, 1, 2),
        (2, *[1] * 16),
        (0, 11, *[1] * 15),
        RELEASED.delays,
    ],
)
def test_decoder_gets_the_codes_of_the_frame(tiny_bundle: Bundle, delays: tuple[int, ...]) -> None:
    """For any delays the decoder gets the codes of the reply, from the first frame on."""
    bundle = replace(tiny_bundle, config=replace(tiny_bundle.config, delays=delays))
    for device in (QueueDevice(), HostDevice()):
        runtime = Runtime(bundle, 2, device=host_backend(device, threads=1))
        decoded = runtime.stages.buffers.by_graph["mimi_decode"]["codes"]
        with runtime.open(None, "", seed=3) as session, runtime.open(None, "Hello", seed=4) as other:
            for frame in range(6):
                replies = runtime.step({other: PCM[1, frame], session: PCM[0, frame]})
                for speaker, reply in replies.items():
                    assert host_view(decoded)[speaker.row].tolist() == reply.tokens[1:9].tolist()
                    assert (reply.tokens[1:9] < 2048).all()


SHORT = 8  # entries: rings grow many times on the way to the tiny model's 96


@pytest.fixture
def short_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SHORTEST_RING", SHORT)


@pytest.mark.parametrize("capacity", [1, 7, 128, 129, 750, 3000, 4096])
def test_ring_lengths_waste_a_third_at_most(capacity: int) -> None:
    lengths = ring_lengths(capacity)
    assert lengths[-1] == capacity and lengths[0] == min(capacity, 128)
    assert all(short < long <= 1.5 * short for short, long in pairwise(lengths))


@pytest.mark.usefixtures("short_rings")
def test_growing_rings_pass_the_golden_checks(place: Place, tiny_bundle: Bundle) -> None:
    bundle, backend = place(tiny_bundle)
    checks = list(check_golden(bundle, TINY, backend))
    assert len(checks) == 17 and all(check.passed for check in checks), checks


def test_growing_rings_change_no_token(tiny_bundle: Bundle, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over a ring of another length may round differently: tokens are equal up to a near tie."""
    whole = Runtime(tiny_bundle, SLOTS, threads=1, device="cpu", logits=True)
    expected = [with_standings(whole.open(**way), codes) for way, codes in zip(WAYS, CODES, strict=True)]
    monkeypatch.setattr(kv_cache, "SHORTEST_RING", SHORT)
    bundle, backend = place(tiny_bundle)
    runtime = Runtime(bundle, SLOTS, device=backend)
    sessions = [runtime.open(**way) for way in WAYS]
    said = [runtime.step_codes(dict(zip(sessions, codes, strict=True))) for codes in CODES.swapaxes(0, 1)]
    for session, conversation in zip(sessions, expected, strict=True):
        assert_same_up_to_a_tie(tiny_bundle, np.stack([tokens[session] for tokens in said]), conversation)


@pytest.mark.usefixtures("short_rings")
def test_rings_grow_with_the_longest_conversation(tiny_bundle: Bundle) -> None:
    runtime = Runtime(tiny_bundle, 3, threads=1, device="cpu")
    capacity = tiny_bundle.config.temporal.capacity

    def talk(session: Session, frames: int) -> int:
        """The ring's length after this number of frames."""
        for _ in range(frames):
            session.step_codes(CODES[0, 0])
        return runtime.stages.ring_length

    def remembered(session: Session) -> int:
        return int(runtime.ring.step[session.row]) - 1  # steps taken

    first = runtime.open(None, "", seed=0)
    lengths = {remembered(first): talk(first, 0)} | {remembered(first): talk(first, 1) for _ in range(capacity + 5)}
    for steps, length in lengths.items():
        assert min(steps + 1, capacity) <= length <= max(SHORT, 1.5 * (steps + 2)), (steps, length)
    short = runtime.open(None, "", seed=1)
    assert talk(short, 1) == capacity, "a slot keeps its memory until it is closed"
    first.close()
    assert talk(short, 1) < 2 * remembered(short)
    said = np.stack([short.step_codes(codes) for codes in CODES[1, :20]])
    alone = Runtime(tiny_bundle, 3, threads=1, device="cpu", batches=[2, 3], logits=True).open(None, "", seed=1)
    talk(alone, 2)
    assert_same_up_to_a_tie(tiny_bundle, said, with_standings(alone, CODES[1, :20]))


@pytest.mark.usefixtures("short_rings")
def test_a_cached_prompt_lengthens_the_rings(tiny_bundle: Bundle) -> None:
    runtime, persona = Runtime(tiny_bundle, 1, threads=1, device="cpu"), list(range(4, 40))
    said = []
    for _ in range(2):
        with runtime.open("NATF0", persona, seed=2) as session:
            said.append([session.step_codes(codes).tolist() for codes in CODES[0, :5]])
        assert runtime.stages.ring_length == SHORT
    assert said[0] == said[1]


@pytest.mark.usefixtures("short_rings")
def test_rings_do_not_grow_without_memory(tiny_bundle: Bundle) -> None:
    """The conversation that needs longer rings fails, and the others continue."""
    device = FullDevice()
    runtime = Runtime(tiny_bundle, 2, device=host_backend(device, threads=1))
    expected = conversation_of(Runtime(tiny_bundle, 2, threads=1, device="cpu", batches=[2]).open(None, "", seed=4))
    short = runtime.open(None, "", seed=4)
    length = runtime.stages.ring_length
    device.room = 3  # of the six rings
    with pytest.raises(MemoryError):
        runtime.open(None, list(range(4, 40)), seed=0)
    assert runtime.stages.ring_length == length
    assert {buffer.shape[2] for buffer in runtime.stages.engines["temporal"].state.values()} == {length}
    device.room = None
    assert conversation_of(short) == expected


class FullDevice(HostDevice):
    """A device with memory for `room` more buffers."""

    room: int | None = None

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        if self.room is not None:
            if not self.room:
                raise MemoryError(shape)
            self.room -= 1
        return super().zeros(shape, dtype)


def conversation_of(session: Session) -> list[list[int]]:
    return [session.step_codes(codes).tolist() for codes in CODES[1, :20]]


def test_slots_take_memory_on_their_first_write() -> None:
    """Memory pages must be small: the first step of a conversation would touch every page of 2 MB."""
    buffer = HostDevice().zeros((64, 1 << 20), "float32")  # 256 MB
    before = resident_nbytes()
    array = host_view(buffer)
    array[:, 0] = 1
    assert not array[:, 1:1000].any()
    assert resident_nbytes() - before < 16 << 20


def resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_seconds_per_graph_are_measured_on_the_host_only(tiny_bundle: Bundle) -> None:
    for device, names in ((HostDevice(), set(tiny_bundle.specs)), (QueueDevice(), {"device"})):
        runtime = Runtime(tiny_bundle, 1, device=host_backend(device, threads=1))
        before = dict(runtime.stages.seconds)
        with runtime.open(seed=0) as session:
            session.step(PCM[0, 0])
        assert {name for name, seconds in runtime.stages.seconds.items() if seconds > before[name]} == names


def test_unused_stages_free_their_memory_at_once(tiny_bundle: Bundle) -> None:
    """Engines take most of the memory, so it must be freed without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        stages = Stages(tiny_bundle, slots=1, device="cpu")
        stages.run_frame(1)
        gone = weakref.ref(stages)
        del stages
        assert gone() is None
    finally:
        gc.enable()


def test_parts_of_a_frame_equal_the_frame(tiny_bundle: Bundle, place: Place) -> None:
    """The parts run one by one, captured if possible, and their outputs stay on the device."""
    outputs = (("mimi_encode", "codes"), ("temporal", "text_token"), ("depth", "audio_tokens"))

    def stages(bundle: Bundle, backend: Backend) -> Stages:
        made = Stages(bundle, SLOTS, device=backend)
        made.pcm_in[:, 0], made.active[:], made.forced_text[:], made.forced_audio[:] = PCM[:, 0], True, -1, -1
        made.text_top_k[:], made.audio_top_k[:] = 1, 1
        return made

    whole, apart = stages(tiny_bundle, host_backend(HostDevice(), threads=1)), stages(*place(tiny_bundle))
    for _ in range(2):
        whole.run_frame(2)
    calls = apart.parts(2)  # creates each engine for the first time
    assert list(calls) == list(tiny_bundle.specs)
    for call in calls.values():
        call()
    apart.device.synchronize()
    for graph, name in outputs:
        on_device = host_view(apart.buffers.by_graph[graph][name])
        np.testing.assert_array_equal(on_device[:2], whole.tensors(graph)[name][:2])
        assert on_device[:2].any() and not on_device[2].any()
