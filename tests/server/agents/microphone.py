"""The user of an agent in tests/server/test_agents.py: a recording over and over, in real time.

After SPEAKS_S seconds, if that is given, the microphone is off: it sends nothing more, also no silence.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import numpy as np
import soundfile
import soxr

RATE, BLOCK = 24_000, 480  # 20 ms


async def speech(seconds: float) -> AsyncIterator[bytes]:
    """Blocks of 16-bit samples of the recording MICROPHONE, for so many seconds."""
    pcm, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32")
    blocks = round(seconds * RATE / BLOCK)
    samples = np.resize((soxr.resample(pcm, rate, RATE) * 32767).astype("<i2"), blocks * BLOCK)
    loop = asyncio.get_running_loop()
    due = loop.time()
    speaks_until = due + float(os.environ.get("SPEAKS_S", "inf"))
    for block in samples.reshape(blocks, BLOCK):
        await asyncio.sleep(due - loop.time())
        due += BLOCK / RATE
        if due < speaks_until:
            yield block.tobytes()
