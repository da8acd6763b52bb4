"""The engine's thread, where the event loop changes what it has just looked at."""

from types import SimpleNamespace

import numpy as np

from pplex.server.engine import EngineThread, Seat, Spoken, now_s
from pplex.server.inbox import Inbox
from pplex.server.metrics import Metrics
from pplex.server.request import ChatRequest

FRAME = 1920


class Leaving(Inbox):
    """Its client's connection is lost just after the engine has seen that a frame is due."""

    def due_s(self) -> float | None:
        due_s = super().due_s()
        self.clear()
        return due_s


def seat(inbox: Inbox) -> Seat:
    inbox.start()
    inbox.push(np.zeros(FRAME, np.float32), now_s())
    return Seat(inbox, ChatRequest(), lambda error: None, lambda spoken: None, session=object())  # type: ignore[arg-type]


def test_a_client_that_leaves_as_its_frame_is_due_harms_nobody() -> None:
    spoken: list[Spoken] = []
    thread = EngineThread(lambda: runtime, 0.0, Metrics(), spoken.extend, lambda: None, lambda error: None)
    runtime = thread.runtime = SimpleNamespace(  # type: ignore[assignment]
        stages=SimpleNamespace(seconds={}), step=lambda frames: {session: None for session in frames}
    )
    stays, leaves = seat(Inbox(FRAME)), seat(Leaving(FRAME))
    thread._seats = [stays, leaves]
    thread._step_whole_frames()
    assert [reply.seat for reply in spoken] == [stays]
    thread._seats = [seat(Leaving(FRAME))]
    thread._step_whole_frames()
    assert len(spoken) == 1
