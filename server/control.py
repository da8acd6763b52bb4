"""Event loop: the orders of one conversation's client, from message to answer, within limits.

Called by `server.conversation`. The scheduler follows the orders (`server.steered`).
"""

import asyncio
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from pplex.runtime.errors import PplexError
from pplex.server.limits import Bucket, Limits
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.orders import OF_MEMORY, Order, OrderError, parse_order
from pplex.server.request import ConversationRequest
from pplex.server.scheduler import ScheduledSession, Scheduler, now_s
from pplex.server.snapshots import Snapshots
from pplex.server.steered import DefectError, Followed, Steered

REASON_MOST = 400  # characters
UNREADABLE = "unreadable"  # an order without a valid name, in the metric


@dataclass(frozen=True)
class ControlContext:
    """Shared by all conversations of a server."""

    scheduler: Scheduler
    snapshots: Snapshots
    voices: Container[str]
    limits: Limits
    metrics: Metrics


class Control:
    """Takes orders, and answers each with `done` or `refused`.

    answer: sends metadata to the client, if it is connected. defect: ends the conversation. `request`: the conversation's
    settings, which a rebuild changes.
    """

    def __init__(
        self,
        context: ControlContext,
        scheduled: ScheduledSession,
        conversation: str,
        answer: Callable[[Mapping[str, object]], None],
        defect: Callable[[], None],
    ):
        self._context, self._scheduled, self._conversation = context, scheduled, conversation
        self._answer, self._defect, self.request = answer, defect, scheduled.request
        self._loop = asyncio.get_running_loop()
        self._steered = Steered(self._tell)
        scheduled.look = self._steered.look
        limits, now = context.limits, now_s()
        self._orders = Bucket(limits.orders, limits.orders_per_s, now)
        self._of_memory = Bucket(limits.memory_orders, limits.memory_orders_per_s, now)
        self._waiting = 0  # orders without an answer
        self._was_refused = False

    def take(self, payload: bytes, has_begun: bool) -> None:
        """Follow or refuse the order in a client's message."""
        try:
            order = self._read(payload)
            if not has_begun:
                raise OrderError("The conversation has not begun.")
            self._check_rate(order)
        except OrderError as error:
            return self._refuse(error.name, error.id, str(error))
        self._waiting += 1
        future = self._context.scheduler.order(self._scheduled, partial(self._steered.follow, order=order))
        future.add_done_callback(partial(self._report, order))

    async def position(self) -> int:
        """The number of the next reply."""
        return await asyncio.wrap_future(self._context.scheduler.order(self._scheduled, self._steered.position))

    def _read(self, payload: bytes) -> Order:
        limits = self._context.limits
        has_room = self._orders.take(1, now_s())
        if len(payload) > limits.order_bytes:
            raise OrderError(f"An order may have {limits.order_bytes:,} bytes; this one has {len(payload):,}.")
        order = parse_order(payload, self._context.voices)
        if not has_room:
            raise _of(order, f"More than {limits.orders_per_s:g} orders a second. Send them more slowly.")
        return order

    def _check_rate(self, order: Order) -> None:
        limits = self._context.limits
        if self._waiting >= limits.waiting_orders:
            raise _of(order, f"{self._waiting} orders wait for an answer. Send the next one after that.")
        if order.name in OF_MEMORY and not self._of_memory.take(1, now_s()):
            rate = f"one in {1 / limits.memory_orders_per_s:g} s"
            raise _of(order, f"More than {rate} of {', '.join(OF_MEMORY)}. Send them more slowly.")

    # The answer.

    def _tell(self, content: Mapping[str, object]) -> None:
        """Scheduler thread: what became of a text."""
        self._loop.call_soon_threadsafe(self._answer, content)

    def _report(self, order: Order, future: "Future[Followed]") -> None:
        """Scheduler thread."""
        self._loop.call_soon_threadsafe(self._finish, order, future)

    def _finish(self, order: Order, future: "Future[Followed]") -> None:
        self._waiting -= 1
        try:
            followed = future.result()
            facts = {**followed.facts, **self._keep(followed)}
        except PplexError as error:
            self._refuse(order.name, order.id, str(error))
            if isinstance(error, DefectError):
                self._defect()
            return
        if order.name == "rebuild":
            self._context.metrics.rebuilds.labels("order").inc()
            self.request = _changed(self.request, order)
        self._context.metrics.orders.labels(order.name, "done").inc()
        LOGGER.info("order", extra={"conversation": self._conversation, "order": order.name, "frame": followed.frame})
        self._answer({"type": "done", "order": order.name, "id": order.id, "frame": followed.frame, **facts})

    def _keep(self, followed: Followed) -> dict[str, object]:
        """Keep the snapshot, if there is one; returns facts for the client. Raises OrderError."""
        snapshot = followed.snapshot
        if snapshot is None:
            return {}
        key = self._context.snapshots.keep(snapshot, replace(self.request, greeting=None, snapshot=None))
        return {"key": key, "bytes": snapshot.nbytes, "seconds": self._context.limits.snapshot_s}

    def _refuse(self, name: str | None, order_id: str | None, reason: str) -> None:
        self._context.metrics.orders.labels(name or UNREADABLE, "refused").inc()
        if not self._was_refused:  # a client that sends nonsense must not fill the log
            self._was_refused = True
            LOGGER.info("orders refused", extra={"conversation": self._conversation, "order": name or UNREADABLE})
        reason = reason if len(reason) <= REASON_MOST else f"{reason[: REASON_MOST - 1]}…"
        self._answer({"type": "refused", "order": name, "id": order_id, "reason": reason})


def _of(order: Order, reason: str) -> OrderError:
    return OrderError(reason, order.name, order.id)


def _changed(request: ConversationRequest, order: Order) -> ConversationRequest:
    """The settings after a rebuild."""
    given = {name: value for name, value in order.arguments.items() if name in ("persona", "voice")}
    return replace(request, **given)
