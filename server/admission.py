"""Event loop: gives slots to clients, and keeps the queue of clients that wait: first come, first served.

Called by `server.reception` and `server.conversation`.
"""

import asyncio
from collections import deque

from pplex.server.metrics import Metrics
from pplex.server.request import RequestError

RETRY_AFTER_S = 10


class Ticket:
    """One client's slot, or its position in the queue. `moved` is set whenever that changes."""

    def __init__(self, admission: "Admission", granted: bool):
        self._admission, self.granted, self.moved = admission, granted, asyncio.Event()

    @property
    def position(self) -> int:
        """0: has a slot. 1: is next."""
        return 0 if self.granted else self._admission.position(self)

    def release(self) -> None:
        """Free the slot, or leave the queue. A second call does nothing."""
        self._admission.release(self)


class Admission:
    """`slots` slots, and a queue of at most `queue` clients."""

    def __init__(self, slots: int, queue: int, metrics: Metrics):
        self.slots, self._limit, self._metrics = slots, queue, metrics
        self._holders, self._waiting = set[Ticket](), deque[Ticket]()
        metrics.slots.set(slots)

    @property
    def used(self) -> int:
        return len(self._holders)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def enter(self) -> Ticket:
        """Take a slot, or a place in the queue. Raises RequestError if both are full."""
        self.check_room()
        ticket = Ticket(self, granted=self._has_slot)
        if ticket.granted:
            self._holders.add(ticket)
        else:
            self._waiting.append(ticket)
        self._count()
        return ticket

    @property
    def _has_slot(self) -> bool:
        return self.used < self.slots and not self._waiting

    def check_room(self) -> None:
        """Raise RequestError if `enter` would."""
        if not self._has_slot and self.queued >= self._limit:
            raise RequestError(
                503, "All slots are taken, and the queue is full. Try again in a few minutes.", RETRY_AFTER_S
            )

    def release(self, ticket: Ticket) -> None:
        if ticket in self._holders:
            self._holders.remove(ticket)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        else:
            return
        while self._waiting and self.used < self.slots:
            following = self._waiting.popleft()
            following.granted = True
            self._holders.add(following)
            following.moved.set()
        for other in self._waiting:
            other.moved.set()
        self._count()

    def position(self, ticket: Ticket) -> int:
        return self._waiting.index(ticket) + 1 if ticket in self._waiting else 0

    def _count(self) -> None:
        self._metrics.slots_used.set(self.used)
        self._metrics.queue_length.set(self.queued)
