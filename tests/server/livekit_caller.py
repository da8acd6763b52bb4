"""An agent of LiveKit's that talks through its PersonaPlex plugin, for tests/server/test_real_clients.py.

    livekit_caller.py URL        until Ctrl-C

It sends the recording MICROPHONE as a room would, 20 ms at 48 kHz, and writes to LOUDSPEAKER, raw float32 at 24 kHz.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import soundfile
import soxr
from livekit import rtc
from livekit.plugins.nvidia import realtime

ROOM_HZ, BLOCK = 48_000, 960


async def speak(session: Any) -> None:
    """The recording over and over, in real time."""
    pcm, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32")
    room = (soxr.resample(pcm, rate, ROOM_HZ) * 32767).astype("<i2")
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        for block in room[: len(room) // BLOCK * BLOCK].reshape(-1, BLOCK):
            await asyncio.sleep(due - loop.time())
            due += BLOCK / ROOM_HZ
            session.push_audio(rtc.AudioFrame(block.tobytes(), ROOM_HZ, 1, BLOCK))


async def play(generation: Any) -> None:
    """Play the agent's audio of one turn."""
    with Path(os.environ["LOUDSPEAKER"]).open("ab", buffering=0) as loudspeaker:
        async for message in generation.message_stream:
            async for frame in message.audio_stream:
                loudspeaker.write((np.frombuffer(frame.data, "<i2") / np.float32(32768)).astype("<f4").tobytes())


async def main(url: str) -> None:
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        model = realtime.RealtimeModel(base_url=url, voice="NATF0", text_prompt="You enjoy a chat.", http_session=http)
        session = model.session()
        session.on("generation_created", lambda generation: tasks.create_task(play(generation)))
        session.on("error", lambda error: print(error, file=sys.stderr))
        speaking = tasks.create_task(speak(session))
        await interrupted.wait()
        speaking.cancel()
        await session.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
