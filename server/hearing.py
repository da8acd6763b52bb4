"""Hearing thread: decodes what clients send, within their limits, into the inboxes of their conversations.

The event loop puts payloads in; the scheduler takes frames out of the inboxes.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.server.inbox import Inbox
from pplex.server.limits import Bucket, Limits
from pplex.server.metrics import Metrics
from pplex.server.scheduler import Scheduler, now_s
from pplex.server.wire import ProtocolError, WireProtocol
from pplex.server.worker import Worker

NEARLY = 4  # samples that may wait in a decoder: a frame that seems to lack fewer may be whole


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
        self._allowance = Bucket(limits.samples, limits.samples_per_s, now_s())
        # The first one is being decoded, or is next. None: a frame of silence.
        self._payloads: deque[tuple[bytes | None, float]] = deque()
        self._turns = threading.Lock()  # so that each payload is decoded once
        self._collected, self._samples = list[bytes](), 0.0  # less than a frame, and not yet in the queue
        self._is_closed = False
        self.heard_s = self.arrived_s = now_s()  # when audio was last decoded, and when it last arrived

    # Event loop.

    def put(self, payload: bytes, arrived_s: float) -> None:
        """Add a payload to the queue.

        Plain samples wait until they complete a frame: four messages of 20 ms then wake the hearing thread once.
        """
        self.arrived_s = arrived_s
        samples = self._wire.samples_in(payload)
        if samples is None:
            self._put_collected(arrived_s)
            return self._put(payload, arrived_s)
        self.heard_s = arrived_s
        self._collected.append(payload)
        self._samples += samples
        # While the hearing thread works for this connection, it is not known how many samples wait in the inbox.
        if self._payloads or self._inbox.waiting + self._samples + NEARLY > self._inbox.frame_size:
            self._put_collected(arrived_s)

    def put_silence(self, now_s: float) -> None:
        """Add a frame of silence to the queue, in place of a client that sends nothing."""
        self._put_collected(now_s)
        self._put(None, now_s)

    def _put_collected(self, arrived_s: float) -> None:
        if self._collected:
            self._put(b"".join(self._collected), arrived_s)
            self._collected, self._samples = [], 0.0

    def _put(self, payload: bytes | None, arrived_s: float) -> None:
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

    def _decode(self, payload: bytes | None, arrived_s: float) -> None:
        """Decode a payload: at most as much as fits the inbox, and as the time since the last payload allows."""
        if self._is_closed:
            return
        if payload is None:
            return self._push(np.zeros(self._inbox.frame_size, np.float32), arrived_s)
        now, bad = now_s(), self._wire.bad_audio
        room = self._inbox.room() if self._is_admitted() else 0
        try:
            received = self._wire.decode(payload, min(room, int(self._allowance.level(now))))
        except ProtocolError as error:
            self._metrics.bad_audio.inc()
            self._loop.call_soon_threadsafe(self._refuse, error)
            return
        if received.is_audio:
            self.heard_s = now
        self._allowance.take(len(received.pcm), now)
        if self._wire.bad_audio > bad:
            self._metrics.bad_audio.inc(self._wire.bad_audio - bad)
        if not self._is_admitted():
            return
        if received.skipped:
            self._inbox.skip(received.skipped)
        self._push(received.pcm, arrived_s)

    def _push(self, pcm: Pcm, arrived_s: float) -> None:
        if self._inbox.push(pcm, arrived_s, self._epoch):
            self._scheduler.wake()
