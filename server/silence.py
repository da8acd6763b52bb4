"""Event loop: lets the model hear silence while a client sends no audio, in protocols whose clients may pause.

Called by `server.conversation`.
"""

import asyncio
import math

from pplex.server.connection import Connection
from pplex.server.hearing import IncomingAudio
from pplex.server.scheduler import now_s
from pplex.server.wire import FRAME_S


async def feed_silence(connection: Connection, incoming: IncomingAudio, after_s: float) -> None:
    """Feed one frame of silence in 80 ms, as long as the client has sent nothing for `after_s`.

    Frames are fed at multiples of 80 ms, for all conversations, so that one call steps them all.
    """
    if not connection.wire.has_pauses:
        return
    await connection.begun.wait()
    begun_s = now_s()
    turn = 0  # multiples of 80 ms: a timer may fire a little early, and must not fire twice for one of them
    while True:
        quiet_s = max(begun_s, incoming.arrived_s) + after_s  # the earliest moment for a frame
        turn = max(turn + 1, math.ceil(max(quiet_s, now_s()) / FRAME_S))
        await asyncio.sleep(turn * FRAME_S - now_s())
        if turn * FRAME_S - max(begun_s, incoming.arrived_s) >= after_s:
            incoming.put_silence(now_s())
