"""One conversation of a load test, in any protocol. Called by `server.load`.

The schedule of its messages, and our own delay (`send lag`):

    handshake --- 0 (scatter: 0-80 ms) --- 20 or 40 ms --- 20 or 40 ms --- ...      the schedule, from one clock
                                     message         message                  `send lag`: the message's delay
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.client_line import CLOSE_S, ClosedError, Line, RefusedError, ServerError, UnreachableError
from pplex.server.load_report import SessionLog
from pplex.server.load_wire import Complaint, Dropped, Event, LoadWire, Ready, Replied
from pplex.server.speakers import Message
from pplex.server.wire import FRAME_SIZE, Close

GRACE_S = 3.0  # wait for the last replies
CRUMB_S = 0.1  # between samples during this wait, which tell the server that the client has not paused


class DeclinedError(ServerError):
    """The server answered with an error instead of a conversation, and the connection is still open."""


async def join(line: Line, wire: LoadWire) -> None:
    """Ask for a conversation, and wait until it listens. Raises ServerError."""
    for message in wire.begin():
        await line.send(message)
    while True:
        match await _next_event(line, wire):
            case Ready():
                return
            case Complaint(reason):
                line.complaint = reason
                if not wire.closes_after_error:
                    raise DeclinedError(reason, reason)


async def _next_event(line: Line, wire: LoadWire) -> Event | None:
    """What the server says next. Raises ServerError, also for what its protocol does not have."""
    message = await line.next_message()
    try:
        return wire.parse(message)
    except (ValueError, LookupError, TypeError) as error:
        raise UnreachableError(
            f"The server sent what is no message of the protocol {wire.name}. Choose another --protocol, or another server."
        ) from error


def refusal(error: ServerError) -> str | None:
    """The code and the reason, if an error of `join` or of the connection before it means that the server refused."""
    match error:
        case RefusedError(status=code, reason=reason):
            return f"{code} {reason}"
        case ClosedError(code=Close.TRY_LATER | Close.POLICY as code, reason=reason):
            return f"{code} {reason}"
        case DeclinedError(reason=reason):
            return reason
    return None


class Talk:
    """A conversation that has begun. What happens in it is in `log`."""

    def __init__(self, line: Line, wire: LoadWire, log: SessionLog, is_over: Callable[[], bool]):
        """is_over: whether the load has ended."""
        self._line, self._wire, self._log, self._is_over = line, wire, log, is_over

    async def hold(self, messages: Iterator[Message], phase_s: float, crumb: bytes) -> None:
        """Speak until the load is over, listen until all frames are answered, and hang up. `crumb` is one sample."""
        log = self._log
        listening = asyncio.create_task(self._listen())
        try:
            await self._speak(messages, phase_s, listening)
        except ServerError as error:
            log.failed = str(error)
        log.finished = True
        if log.failed or log.deficit > 0:
            await self._wait_for_replies(listening, crumb)
        try:
            if listening.done() and not listening.cancelled():
                listening.result()
        except ServerError as error:
            log.failed = str(error)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        if not (log.answers_all or log.replied_s or log.failed):
            log.failed = "no audio came"
        await self._hang_up()

    async def _speak(self, messages: Iterator[Message], phase_s: float, listening: asyncio.Task[None]) -> None:
        """Send each message at the time when a microphone has recorded its last sample. End with a whole frame."""
        log, due_s, samples_sent = self._log, time.perf_counter() + phase_s, 0
        for payload, samples in messages:
            due_s += samples / SAMPLE_RATE_HZ
            await asyncio.sleep(due_s - time.perf_counter())
            if listening.done() or (self._is_over() and samples_sent % FRAME_SIZE == 0):
                return
            sent_s = time.perf_counter()
            await self._line.send(self._wire.audio(payload))
            samples_sent += samples
            if samples:
                log.lags_s.append(sent_s - due_s)
                if samples_sent % FRAME_SIZE == 0:
                    log.sent_s.append(sent_s)

    async def _listen(self) -> None:
        """Record every reply. Ends when the session has finished and no reply is due."""
        log = self._log
        while not (log.finished and log.deficit <= 0):
            match await _next_event(self._line, self._wire):
                case Replied(frames, begins):
                    log.replied(time.perf_counter(), frames, begins)
                case Dropped(frames):
                    log.dropped = frames
                case Complaint(reason):
                    self._line.complaint = log.failed = reason

    async def _wait_for_replies(self, listening: asyncio.Task[None], crumb: bytes) -> None:
        """Wait for the last replies. Where a pause would be filled, samples that make no frame keep it from being one."""
        log, end_s = self._log, time.perf_counter() + GRACE_S
        while not listening.done() and time.perf_counter() < end_s:
            await asyncio.wait({listening}, timeout=CRUMB_S)
            if log.has_pauses and not (listening.done() or log.failed):
                with suppress(ServerError):  # the listener reports it
                    await self._line.send(self._wire.audio(crumb))

    async def _hang_up(self) -> None:
        """End the conversation as the protocol wants it."""
        farewell = [] if self._log.failed else self._wire.end()
        try:
            for message in farewell:
                await self._line.send(message)
            if farewell:
                async with asyncio.timeout(CLOSE_S):
                    while True:
                        await self._line.next_message()
        except ClosedError as error:
            if error.code != Close.NORMAL:
                self._log.failed = str(error)
        except (ServerError, TimeoutError):
            self._log.failed = "the server did not end the conversation when it was asked to"
        await self._line.close()
