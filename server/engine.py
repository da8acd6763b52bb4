"""The engine's thread: every conversation with a whole frame stepped together, newcomers primed in between.

Nothing else touches the Runtime. The event loop gives orders and hears of them through callbacks, which run in this thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from pplex.runtime.errors import PplexError
from pplex.runtime.session import Reply, Runtime, Session
from pplex.server.inbox import Frame, Inbox
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.protocol import FRAME_S
from pplex.server.request import ChatRequest

now_s = time.monotonic


@dataclass(eq=False)
class Seat:
    """A conversation as the engine sees it: what it hears, and its session once it is primed."""

    inbox: Inbox
    request: ChatRequest
    primed: Callable[[PplexError | None], None]  # called once, in the engine's thread: ready, or refused
    answer: Callable[["Spoken"], None]  # called in the speech thread
    session: Session | None = None
    expected_s: float = 0.0  # when its next frame will be due if it goes on as it did


@dataclass(frozen=True)
class Spoken:
    """The reply to a frame, when it was due and when it was ready."""

    seat: Seat
    frame: Frame
    reply: Reply
    due_s: float
    ready_s: float


class EngineThread:
    """Loads a runtime and steps its conversations until it is stopped.

    load: makes the runtime. spoken: is given each batch's replies. ready and failed: called once each at most. All of them
    are called in the engine's thread. A failure ends the thread: what it held is in no known state.
    """

    def __init__(
        self,
        load: Callable[[], Runtime],
        batch_wait_s: float,
        metrics: Metrics,
        spoken: Callable[[list[Spoken]], None],
        ready: Callable[[], None],
        failed: Callable[[BaseException], None],
    ):
        self._load, self._batch_wait_s, self._metrics = load, batch_wait_s, metrics
        self._spoken, self._ready, self._failed = spoken, ready, failed
        self._wake = threading.Condition()
        self._orders: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._woken, self._awaited = 0, 1  # frames since the last look, and how many make the next one worthwhile
        self._seats: list[Seat] = []  # primed
        self._priming: deque[tuple[Seat, Generator[None, None, Session]]] = deque()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.runtime: Runtime | None = None

    # Orders, from any thread.

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def open(self, seat: Seat) -> None:
        """Prime a seat: its `primed` is called when that is done."""
        self._order(lambda: self._begin(seat))

    def close(self, seat: Seat) -> None:
        """Free a seat, or stop priming it."""
        self._order(lambda: self._end(seat))

    def wake(self) -> None:
        """A frame has become whole. It wakes the thread if that waits for no more than this one."""
        with self._wake:
            self._woken += 1
            if self._woken >= self._awaited:
                self._wake.notify()

    def stop(self) -> None:
        """End the thread and wait for it; one that is still loading, which may take minutes, ends with the process."""
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
                if self._priming:
                    self._prime_one_chunk()
                else:
                    self._sleep(wait_s)
        except BaseException as error:
            LOGGER.error("the engine failed", exc_info=not isinstance(error, PplexError))
            self._failed(error)

    def _take_orders(self) -> list[Callable[[], None]]:
        with self._wake:
            orders = list(self._orders)
            self._orders.clear()
            self._woken, self._awaited = 0, 1
        return orders

    def _sleep(self, wait_s: float | None) -> None:
        """Until there is something to do, at most `wait_s`."""
        with self._wake:
            if not (self._orders or self._woken >= self._awaited or self._stopping):
                self._wake.wait(wait_s)

    def _step_whole_frames(self) -> float | None:
        """Step those whose frame is due, together with those whose frame is about to be; returns seconds to sleep.

        A frame waits `batch_wait_s` at most, and only while another's is expected, 80 ms after its last one.
        """
        now = now_s()
        due = {seat: due_s for seat in self._seats if (due_s := seat.inbox.due_s()) is not None}
        there = {seat: due_s for seat, due_s in due.items() if due_s <= now}
        if not there:
            return min(due.values()) - now if due else None
        wait_s = self._batch_wait_s
        until_s = min(there.values()) + wait_s
        others = (due.get(seat, seat.expected_s) for seat in self._seats if seat not in there)
        awaited = sum(now - wait_s < expected_s < until_s + wait_s for expected_s in others)  # as early or late as that
        if awaited and now < until_s:
            self._awaited = awaited
            return until_s - now
        self._step(list(there), due)
        return 0.0

    def _step(self, seats: list[Seat], due: dict[Seat, float]) -> None:
        assert self.runtime is not None
        began = now_s()
        before = dict(self.runtime.stages.seconds)
        # There is none any more where the client has just left.
        heard = {seat: frame for seat in seats if (frame := seat.inbox.pop()) is not None}
        if not heard:
            return
        replies = self.runtime.step({_session(seat): frame.pcm for seat, frame in heard.items()})
        ready = now_s()
        self._spoken([Spoken(seat, frame, replies[_session(seat)], due[seat], ready) for seat, frame in heard.items()])
        observe = self._metrics.frame_seconds.labels
        observe("step").observe(ready - began)
        for graph, seconds in self.runtime.stages.seconds.items():
            observe(graph).observe(seconds - before[graph])
        for seat in heard:
            seat.expected_s = due[seat] + FRAME_S
            observe("wait").observe(began - due[seat])
        self._metrics.batch_size.observe(len(heard))

    def _begin(self, seat: Seat) -> None:
        assert self.runtime is not None
        request = seat.request
        opening = self.runtime.begin(request.voice, request.persona, request.seed, request.sampling)
        self._priming.append((seat, opening))

    def _prime_one_chunk(self) -> None:
        """One chunk of the newcomer whose turn it is."""
        seat, opening = self._priming.popleft()
        try:
            next(opening)
            self._priming.append((seat, opening))
        except StopIteration as end:
            seat.session = end.value
            self._seats.append(seat)
            seat.primed(None)
        except PplexError as error:
            seat.primed(error)

    def _end(self, seat: Seat) -> None:
        for priming in self._priming:
            if priming[0] is seat:
                self._priming.remove(priming)
                priming[1].close()
                return
        if seat.session is not None:
            self._seats.remove(seat)
            seat.session.close()
            seat.session = None


def _session(seat: Seat) -> Session:
    assert seat.session is not None
    return seat.session
