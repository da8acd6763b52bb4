"""Hearing thread: decodes what clients send, within their limits, into the inboxes of their conversations.

The event loop puts payloads in; the scheduler takes frames out of the inboxes.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from pplex.server.inbox import Inbox
from pplex.server.limits import Bucket, Limits
from pplex.server.metrics import Metrics
from pplex.server.scheduler import Scheduler, now_s
from pplex.server.wire import ProtocolError, WireProtocol
from pplex.server.worker import Worker


class IncomingAudio:
    """One connection's audio, from payloads to its conversation's inbox.

    refuse: called in the event loop with the error that ends the connection. is_admitted: whether the conversation has a
    slot; earlier audio is dropped.
    """

    def __init__(
        self,
        wire: WireProtocol,
        inbox: Inbox,
        scheduler: Scheduler,
        hearing: Worker,
        limits: Limits,
        metrics: Metrics,
        refuse: Callable[[ProtocolError], None],
        is_admitted: Callable[[], bool],
    ):
        self._wire, self._inbox, self._epoch = wire, inbox, inbox.epoch
        self._scheduler, self._hearing, self._metrics = scheduler, hearing, metrics
        self._refuse, self._is_admitted = refuse, is_admitted
        self._loop = asyncio.get_running_loop()
        self._samples = Bucket(limits.samples, limits.samples_per_s, now_s())
        self._payloads: deque[tuple[bytes, float]] = deque()  # the first one is being decoded, or is next
        self._turns = threading.Lock()  # so that each payload is decoded once
        self._is_closed = False
        self.heard_s = now_s()  # when audio was last decoded

    # Event loop.

    def put(self, payload: bytes, arrived_s: float) -> None:
        """Add a payload to the queue."""
        with self._turns:
            self._payloads.append((payload, arrived_s))
            is_next = len(self._payloads) == 1
        if is_next:
            self._hearing.put(self._decode_next)

    def close(self) -> None:
        """Stop decoding, because the connection ends."""
        self._is_closed = True

    # Hearing thread.

    def _decode_next(self) -> None:
        """Decode one payload. Then it is the turn of other connections, even if more payloads wait."""
        try:
            self._decode(*self._payloads[0])
        finally:
            with self._turns:
                self._payloads.popleft()
                has_more = bool(self._payloads)
            if has_more:
                self._hearing.put(self._decode_next)

    def _decode(self, payload: bytes, arrived_s: float) -> None:
        """Decode a payload: at most as much as fits the inbox, and as the time since the last payload allows."""
        if self._is_closed:
            return
        now, bad = now_s(), self._wire.bad_audio
        room = self._inbox.room() if self._is_admitted() else 0
        try:
            received = self._wire.decode(payload, min(room, int(self._samples.level(now))))
        except ProtocolError as error:
            self._metrics.bad_audio.inc()
            self._loop.call_soon_threadsafe(self._refuse, error)
            return
        if received.is_audio:
            self.heard_s = now
        self._samples.take(len(received.pcm), now)
        self._metrics.bad_audio.inc(self._wire.bad_audio - bad)
        if not self._is_admitted():
            return
        self._inbox.skip(received.skipped)
        if self._inbox.push(received.pcm, arrived_s, self._epoch):
            self._scheduler.wake()
