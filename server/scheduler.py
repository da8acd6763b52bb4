"""Scheduler thread: steps every session with a whole frame together. In between it primes newcomers and rebuilds sessions.

Only this thread uses the Runtime, except for `Runtime.check_prompt`. The event loop orders it to open and close sessions,
and passes on what clients order their sessions to do; its replies go to the speech thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pplex.runtime.errors import PplexError, SlotError
from pplex.runtime.session import Reply, Runtime, Session
from pplex.runtime.snapshot import Snapshot
from pplex.server.background import Background, Work
from pplex.server.inbox import Frame, Inbox
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.request import ConversationRequest
from pplex.server.wire import FRAME_S
from pplex.server.worker import Worker

now_s = time.monotonic
T = TypeVar("T")


@dataclass(frozen=True)
class FrameReply:
    """The reply to a frame, and the times when it was due and when it was ready."""

    frame: Frame
    reply: Reply
    due_s: float
    ready_s: float


@dataclass(eq=False)
class ScheduledSession:
    """The scheduler's part of a conversation: its inbox, and its session after priming."""

    inbox: Inbox
    request: ConversationRequest
    answer: Callable[[FrameReply], None]  # OutgoingAudio.answer, called in the speech thread
    primed: "Future[None]" = field(default_factory=Future)  # done after priming, or has its error
    session: Session | None = None
    expected_s: float = 0.0  # due time of its next frame: 80 ms after the last one
    snapshot: Snapshot | None = None  # that the session continues, until it is open
    look: Callable[[], None] | None = None  # called in the scheduler's thread after each step and each order


class Scheduler:
    """Loads a runtime and steps its sessions until it is stopped.

    load: makes the runtime. ready, failed: called at most once. These three are called in the scheduler's thread.
    speech: the worker that encodes replies. A failure ends the thread, because the sessions' state is then unknown.
    """

    def __init__(
        self,
        load: Callable[[], Runtime],
        batch_wait_s: float,
        metrics: Metrics,
        speech: Worker,
        ready: Callable[[], None],
        failed: Callable[[BaseException], None],
    ):
        self._load, self._batch_wait_s, self._metrics = load, batch_wait_s, metrics
        self._speech, self._ready, self._failed = speech, ready, failed
        self._wake = threading.Condition()
        self._orders: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._woken, self._awaited = 0, 1  # frames since the last check; the number of frames that wakes the thread
        self._sessions: list[ScheduledSession] = []  # primed
        self._background = Background(metrics)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.runtime: Runtime | None = None

    # Orders, from any thread.

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def open(self, scheduled: ScheduledSession) -> None:
        """Prime a session. After that its `primed` is done."""
        self._order(lambda: self._begin(scheduled))

    def order(self, scheduled: ScheduledSession, follow: Callable[[Session], Generator[None, None, T]]) -> "Future[T]":
        """Do something with a session between two frames; returns the future result of `follow`.

        What `follow` does before its first yield is done at once. The rest needs the runtime's spare slot: it waits for
        its turn, and runs in chunks. The future gets a SlotError if the session is not open, or is closed meanwhile.
        Errors other than PplexError end the thread.
        """
        future = Future[T]()
        self._order(lambda: self._follow(scheduled, follow, future))
        return future

    def close(self, scheduled: ScheduledSession) -> None:
        """Free a session's slot, or stop priming it."""
        self._order(lambda: self._end(scheduled))

    def wake(self) -> None:
        """Report a complete frame. It wakes the thread, unless the thread waits for more frames."""
        with self._wake:
            self._woken += 1
            if self._woken >= self._awaited:
                self._wake.notify()

    def stop(self) -> None:
        """End the thread, and wait for it if the runtime is loaded. Loading may take minutes: it ends with the process."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self.runtime is not None:
            self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    # The thread.

    def _run(self) -> None:
        try:
            self.runtime = self._load()
            self._ready()
            while not self._stopping:
                for order in self._take_orders():
                    order()
                wait_s = self._step_whole_frames()
                if not self._background.run_one_chunk(self.runtime):
                    self._sleep(wait_s)
        except BaseException as error:
            LOGGER.error("the scheduler failed", exc_info=not isinstance(error, PplexError))
            self._failed(error)

    def _take_orders(self) -> list[Callable[[], None]]:
        with self._wake:
            orders = list(self._orders)
            self._orders.clear()
            self._woken, self._awaited = 0, 1
        return orders

    def _sleep(self, wait_s: float | None) -> None:
        """Sleep until the thread has work, at most `wait_s`."""
        with self._wake:
            if not (self._orders or self._woken >= self._awaited or self._stopping):
                self._wake.wait(wait_s)

    def _step_whole_frames(self) -> float | None:
        """Step sessions whose frame is due, together with those whose frame is due soon; returns the seconds to sleep.

        A frame waits at most `batch_wait_s`, and only while another session's frame is expected: 80 ms after its last frame.
        """
        now = now_s()
        due = {each: due_s for each in self._sessions if (due_s := each.inbox.due_s()) is not None}
        ready = {each: due_s for each, due_s in due.items() if due_s <= now}
        if not ready:
            return min(due.values()) - now if due else None
        wait_s = self._batch_wait_s
        until_s = min(ready.values()) + wait_s
        others = (due.get(each, each.expected_s) for each in self._sessions if each not in ready)
        # Frames that are expected by then; each may be early or late by up to wait_s.
        awaited = sum(now - wait_s < expected_s < until_s + wait_s for expected_s in others)
        if awaited and now < until_s:
            self._awaited = awaited
            return until_s - now
        self._step(list(ready), due)
        return 0.0

    def _step(self, ready: list[ScheduledSession], due: dict[ScheduledSession, float]) -> None:
        assert self.runtime is not None
        began_s = now_s()
        before = dict(self.runtime.stages.seconds)
        # A client that has just left has no frame.
        frames = {each: frame for each in ready if (frame := each.inbox.pop()) is not None}
        if not frames:
            return
        replies = self.runtime.step({_session(each): frame.pcm for each, frame in frames.items()})
        ready_s = now_s()
        for each, frame in frames.items():
            self._speech.put(partial(each.answer, FrameReply(frame, replies[_session(each)], due[each], ready_s)))
        observe = self._metrics.frame_seconds.labels
        observe("step").observe(ready_s - began_s)
        for graph, seconds in self.runtime.stages.seconds.items():
            observe(graph).observe(seconds - before[graph])
        for each in frames:
            each.expected_s = due[each] + FRAME_S
            observe("wait").observe(began_s - due[each])
            if each.look is not None:
                each.look()
        self._metrics.batch_size.observe(len(frames))
        self._background.count_rebuilt(self.runtime)

    def _begin(self, scheduled: ScheduledSession) -> None:
        assert self.runtime is not None
        if not scheduled.primed.set_running_or_notify_cancel():
            return  # its client has left
        self._background.prime(Work(scheduled, self._open(scheduled), scheduled.primed, None))

    def _open(self, scheduled: ScheduledSession) -> Generator[None, None, None]:
        """Open a new session: primed in chunks, or from a snapshot in one."""
        assert self.runtime is not None
        request, snapshot = scheduled.request, scheduled.snapshot
        if snapshot is None:
            settings = request.voice, request.persona, request.seed, request.sampling
            scheduled.session = yield from self.runtime.begin(*settings, greeting=request.greeting)
        else:
            scheduled.session, scheduled.snapshot = self.runtime.open(snapshot=snapshot), None
        self._sessions.append(scheduled)

    def _follow(
        self, scheduled: ScheduledSession, follow: Callable[[Session], Generator[None, None, T]], future: "Future[T]"
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        if scheduled.session is None:
            return future.set_exception(SlotError("The conversation has not begun, or is over."))
        work = Work(scheduled, follow(scheduled.session), future, scheduled.look)
        if not work.advance():
            self._background.rebuild(work)

    def _end(self, scheduled: ScheduledSession) -> None:
        self._background.drop(scheduled)
        if scheduled.session is not None:
            self._sessions.remove(scheduled)
            scheduled.session.close()
            scheduled.session = None
        scheduled.snapshot = None


def _session(scheduled: ScheduledSession) -> Session:
    assert scheduled.session is not None
    return scheduled.session
