"""The scheduler: its thread, and an inbox that the event loop changes just after it was checked."""

import threading
from collections.abc import Generator
from queue import Queue
from types import SimpleNamespace

import numpy as np

from pplex.server.chat_request import ChatRequest
from pplex.server.inbox import Inbox
from pplex.server.metrics import Metrics
from pplex.server.scheduler import ScheduledSession, Scheduler, now_s
from pplex.server.worker import Work

FRAME = 1920


class Leaving(Inbox):
    """The client disconnects just after the scheduler sees that a frame is due."""

    def due_s(self) -> float | None:
        due_s = super().due_s()
        self.clear()
        return due_s


def scheduled(inbox: Inbox) -> ScheduledSession:
    inbox.start()
    inbox.push(np.zeros(FRAME, np.float32), now_s())
    return ScheduledSession(inbox, ChatRequest(), lambda reply: None, session=object())  # type: ignore[arg-type]


def test_a_client_that_leaves_as_its_frame_is_due_does_no_harm() -> None:
    replies: list[Work] = []
    speech = SimpleNamespace(put=replies.append)
    scheduler = Scheduler(lambda: runtime, 0.0, Metrics(), speech, lambda: None, lambda error: None)  # type: ignore[arg-type]
    runtime = scheduler.runtime = SimpleNamespace(  # type: ignore[assignment]
        stages=SimpleNamespace(seconds={}),
        memory=SimpleNamespace(rebuilt=0),
        step=lambda frames: {session: None for session in frames},
    )
    stays, leaves = scheduled(Inbox(FRAME)), scheduled(Leaving(FRAME))
    scheduler._sessions = [stays, leaves]
    scheduler._step_whole_frames()
    assert [reply.func for reply in replies] == [stays.answer]  # type: ignore[attr-defined]
    scheduler._sessions = [scheduled(Leaving(FRAME))]
    scheduler._step_whole_frames()
    assert len(replies) == 1


class Watched:
    """A runtime that notes the threads which use it."""

    def __init__(self) -> None:
        self.stages, self.memory = SimpleNamespace(seconds={}), SimpleNamespace(rebuilt=0)
        self.threads = [threading.current_thread().name]

    def begin(self, *_: object, greeting: str | None) -> Generator[None, None, object]:
        self.threads.append(threading.current_thread().name)
        yield
        return object()

    def work(self) -> bool:
        self.threads.append(threading.current_thread().name)
        return False

    def step(self, frames: dict[object, object]) -> dict[object, None]:
        self.threads.append(threading.current_thread().name)
        return dict.fromkeys(frames)


def test_one_thread_loads_the_runtime_opens_sessions_and_steps_them() -> None:
    """ONNX Runtime keeps CUDA graphs by thread."""
    replies, ready = Queue[Work](), threading.Event()
    scheduler = Scheduler(Watched, 0.0, Metrics(), replies, ready.set, print)  # type: ignore[arg-type]
    scheduler.start()
    assert ready.wait(10)
    new = scheduled(Inbox(FRAME))
    new.session = None
    scheduler.open(new)
    new.primed.result(10)
    scheduler.wake()
    replies.get(timeout=10)
    assert set(scheduler.runtime.threads) == {"scheduler"}  # type: ignore[union-attr]
    scheduler.stop()
