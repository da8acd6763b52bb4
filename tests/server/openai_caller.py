"""OpenAI's own client in a conversation over GPT-Live, for tests/server/test_live_clients.py.

    openai_caller.py URL KEY        sends 10 s of the recording MICROPHONE; prints what came back as JSON

It writes what the agent said to LOUDSPEAKER, 16-bit at 24 kHz.
"""

import asyncio
import base64
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from openai import AsyncOpenAI

RATE, CHUNK = 24_000, 2_400  # 100 ms
CHUNKS = 100


async def speak(live: Any) -> None:
    """The recording over and over, in real time."""
    pcm, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32")
    samples = np.resize((soxr.resample(pcm, rate, RATE) * 32767).astype("<i2"), CHUNK * CHUNKS)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for chunk in samples.reshape(-1, CHUNK):
        await asyncio.sleep(due - loop.time())
        due += CHUNK / RATE
        await live.session.input_audio.append(audio=base64.b64encode(chunk.tobytes()).decode())
    await live.session.close()


async def main() -> None:
    client = AsyncOpenAI(api_key=sys.argv[2], base_url=f"{sys.argv[1]}/v1", max_retries=0)
    kinds, times = list[str](), list[float]()
    loop = asyncio.get_running_loop()
    models = [model.id async for model in client.models.list()]
    async with client.live.connect() as live:
        await live.session.start(session={"model": "gpt-live-1", "instructions": "You are kind."})
        speaking, text = None, ""
        with Path(os.environ["LOUDSPEAKER"]).open("wb") as loudspeaker:
            async for event in live:
                kinds.append(event.type)
                if event.type == "session.started":
                    speaking = asyncio.create_task(speak(live))
                elif event.type == "session.output_audio.delta":
                    loudspeaker.write(base64.b64decode(event.delta))
                    times.append(loop.time())
                elif event.type == "session.output_transcript.delta":
                    text += event.delta
    assert speaking is not None
    await speaking
    gap_s = max((later - before for before, later in pairwise(times)), default=0.0)
    print(json.dumps({"models": models, "kinds": sorted(set(kinds)), "text": text, "gap_s": gap_s, "last": kinds[-1]}))


asyncio.run(main())
