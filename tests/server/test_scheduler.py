"""The scheduler, if the event loop changes an inbox that it has just checked."""

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
        stages=SimpleNamespace(seconds={}), step=lambda frames: {session: None for session in frames}
    )
    stays, leaves = scheduled(Inbox(FRAME)), scheduled(Leaving(FRAME))
    scheduler._sessions = [stays, leaves]
    scheduler._step_whole_frames()
    assert [reply.func for reply in replies] == [stays.answer]  # type: ignore[attr-defined]
    scheduler._sessions = [scheduled(Leaving(FRAME))]
    scheduler._step_whole_frames()
    assert len(replies) == 1
