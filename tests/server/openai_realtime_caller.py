"""OpenAI's own client in a conversation over the Realtime API, for tests/server/test_realtime_clients.py.

    openai_realtime_caller.py URL KEY   sends 8 s of the recording MICROPHONE; prints what came back as JSON

It writes what the agent said to LOUDSPEAKER, 16-bit at 24 kHz.
"""

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from openai import AsyncOpenAI

RATE, CHUNK = 24_000, 2_400  # 100 ms
CHUNKS = 80


async def speak(connection: Any) -> None:
    """The recording over and over, in real time."""
    pcm, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32")
    samples = np.resize((soxr.resample(pcm, rate, RATE) * 32767).astype("<i2"), CHUNK * CHUNKS)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for chunk in samples.reshape(-1, CHUNK):
        await asyncio.sleep(due - loop.time())
        due += CHUNK / RATE
        await connection.input_audio_buffer.append(audio=base64.b64encode(chunk.tobytes()).decode())
    await connection.close()


async def main() -> None:
    client = AsyncOpenAI(api_key=sys.argv[2], base_url=f"{sys.argv[1]}/v1", max_retries=0)
    kinds, said = list[str](), list[Any]()
    async with client.realtime.connect(model="gpt-realtime", extra_query={"seed": "5"}) as connection:
        await connection.session.update(session={"type": "realtime", "instructions": "You are kind."})
        speaking = asyncio.create_task(speak(connection))
        with Path(os.environ["LOUDSPEAKER"]).open("wb") as loudspeaker:
            async for event in connection:
                kinds.append(event.type)
                if event.type == "response.output_audio.delta":
                    loudspeaker.write(base64.b64decode(event.delta))
                elif event.type == "response.done":
                    said.append([event.response.status, event.response.output[0].content[0].transcript])
                elif event.type == "session.updated":
                    session = event.session.model_dump()
    await speaking
    print(json.dumps({"kinds": sorted(set(kinds)), "said": said, "session": session}))


asyncio.run(main())
