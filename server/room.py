"""Event loop: the time between an open WebSocket and the message that starts a conversation, in protocols that have one.

Called by `server.calls`. Such a socket takes no slot.
"""

import asyncio
from typing import Any

from pplex.server.connection import Connection
from pplex.server.conversation import guarded
from pplex.server.request import ConversationRequest, RequestError
from pplex.server.wire import Close, CloseReason


async def opening(connection: Connection, seconds: float) -> ConversationRequest | None:
    """Wait for the settings of a conversation. None if the connection ends instead: `connection.ended` says why."""
    asked = list[ConversationRequest]()

    async def read() -> None:
        asked.append(await connection.start())

    reading = asyncio.create_task(guarded(read(), connection))
    try:
        either: set[asyncio.Future[Any]] = {reading, connection.ended}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    if not asked:
        reason = f"No conversation was started in {seconds:g} s."
        connection.end(CloseReason(Close.POLICY, reason, "idle"))  # unless it is ending already
    return None if connection.ended.done() else asked[0]


def too_late(error: RequestError) -> CloseReason:
    """How to refuse a conversation after the upgrade, when it is too late for an HTTP status."""
    if error.status == 503:
        return CloseReason(Close.TRY_LATER, str(error), "full")
    return CloseReason(Close.POLICY, str(error), "prompt")
