"""Scheduler thread: work that is done in chunks between frames: priming of newcomers, and rebuilds of sessions' memory.

Called by `server.scheduler`.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pplex.runtime.errors import PplexError, SlotError
from pplex.runtime.session import Runtime
from pplex.server.metrics import Metrics


@dataclass(frozen=True, eq=False)
class Work:
    """Chunks of work for `owner`. `future` gets the result or the error; `after` is called after that."""

    owner: object
    chunks: Generator[None, None, Any]
    future: "Future[Any]"
    after: Callable[[], None] | None

    def advance(self) -> bool:
        """Run the next chunk; returns whether the work is done. Errors other than PplexError are raised."""
        try:
            next(self.chunks)
            return False
        except StopIteration as end:
            self.future.set_result(end.value)
        except PplexError as error:
            self.future.set_exception(error)
        if self.after is not None:
            self.after()
        return True

    def close(self) -> None:
        """Stop the work, because its conversation is over."""
        self.chunks.close()
        self.future.set_exception(SlotError("The conversation is over."))


class Background:
    """Newcomers and rebuilds take turns. All newcomers advance together; rebuilds follow one another.

    One rebuild at a time, because the runtime has one spare slot. Those that the memory window asks for come first.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._priming, self._rebuilds = deque[Work](), deque[Work]()
        self._is_rebuilding = False  # whether the first of `_rebuilds` has begun
        self._is_rebuilds_turn = False
        self._rebuilt = 0  # rebuilds that the memory window asked for, as counted

    def prime(self, work: Work) -> None:
        """Add the priming of a newcomer."""
        self._priming.append(work)

    def rebuild(self, work: Work) -> None:
        """Add work that needs the spare slot."""
        self._rebuilds.append(work)

    def drop(self, owner: object) -> None:
        """Stop all work of a conversation, before its session is closed: a rebuild then gives back the spare slot."""
        self._is_rebuilding = self._is_rebuilding and self._rebuilds[0].owner is not owner
        for queue in (self._priming, self._rebuilds):
            for work in [each for each in queue if each.owner is owner]:
                queue.remove(work)
                work.close()

    def run_one_chunk(self, runtime: Runtime) -> bool:
        """Run one chunk of the work that waits; returns whether there was any."""
        self._is_rebuilds_turn = not self._is_rebuilds_turn
        if self._is_rebuilds_turn:
            return self._rebuild_one_chunk(runtime) or self._prime_one_chunk()
        return self._prime_one_chunk() or self._rebuild_one_chunk(runtime)

    def _prime_one_chunk(self) -> bool:
        if not self._priming:
            return False
        work = self._priming.popleft()
        if not work.advance():
            self._priming.append(work)
        return True

    def _rebuild_one_chunk(self, runtime: Runtime) -> bool:
        if not self._is_rebuilding and self._work_for_window(runtime):
            return True
        if not self._rebuilds:
            return False
        self._is_rebuilding = not self._rebuilds[0].advance()
        if not self._is_rebuilding:
            self._rebuilds.popleft()
        return True

    def _work_for_window(self, runtime: Runtime) -> bool:
        """Run one chunk of a rebuild that the memory window asks for; returns whether there was one."""
        before = self._rebuilt
        more = runtime.work()
        self.count_rebuilt(runtime)
        return more or self._rebuilt != before

    def count_rebuilt(self, runtime: Runtime) -> None:
        """Count the rebuilds that the memory window asked for. A late one is done in a step."""
        if runtime.memory.rebuilt != self._rebuilt:
            self._metrics.rebuilds.labels("window").inc(runtime.memory.rebuilt - self._rebuilt)
            self._rebuilt = runtime.memory.rebuilt
