"""How OpenAI's client and openai-agents see the end of a conversation, for tests/server/test_openai_ends.py.

openai_ends.py live|realtime|agents URL KEY SECONDS      prints what the client saw at the end as JSON
"""

import asyncio
import base64
import json
import sys
from contextlib import suppress
from typing import Any

from agents.realtime import RealtimeAgent, RealtimeRunner
from microphone import speech
from openai import AsyncOpenAI
from websockets.exceptions import ConnectionClosed

Facts = dict[str, Any]


async def send(append: Any, seconds: float) -> None:
    """Speak until the connection is closed."""
    with suppress(ConnectionClosed):
        async for block in speech(seconds):
            await append(block)


async def listen(connection: Any, append: Any, seconds: float) -> Facts:
    """The last event, and the close code of which the client makes an error."""
    speaking = asyncio.create_task(send(append, seconds))
    last: Any = None
    code: int | None = None
    try:
        async for event in connection:
            last = event
    except ConnectionClosed as error:
        code = error.rcvd.code if error.rcvd else None
    speaking.cancel()
    return {"last": last.model_dump(), "code": code}


async def live(client: AsyncOpenAI, seconds: float) -> Facts:
    async with client.live.connect() as connection:
        await connection.session.start(session={"model": "gpt-live-1", "instructions": "You are kind."})

        async def append(block: bytes) -> None:
            await connection.session.input_audio.append(audio=base64.b64encode(block).decode())

        async for event in connection:
            if event.type == "session.started":
                return await listen(connection, append, seconds)
    raise RuntimeError("The session did not start.")


async def realtime(client: AsyncOpenAI, seconds: float) -> Facts:
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.session.update(session={"type": "realtime", "instructions": "You are kind."})

        async def append(block: bytes) -> None:
            await connection.input_audio_buffer.append(audio=base64.b64encode(block).decode())

        return await listen(connection, append, seconds)


async def agents(url: str, key: str, seconds: float) -> Facts:
    runner = RealtimeRunner(RealtimeAgent(name="waiter", instructions="You are kind."))
    address = url.replace("http", "ws", 1) + "/v1/realtime"
    errors = list[str]()
    async with await runner.run(model_config={"url": address, "api_key": key}) as session:
        speaking = asyncio.create_task(send(session.send_audio, seconds))
        try:
            async with asyncio.timeout(seconds):
                async for event in session:
                    if event.type == "error":
                        errors.append(str(event.error))
        except ConnectionClosed as error:
            errors.append(str(error))
        speaking.cancel()
    return {"errors": errors}


async def main(kind: str, url: str, key: str, seconds: float) -> Facts:
    client = AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)
    try:
        match kind:
            case "live":
                return await live(client, seconds)
            case "realtime":
                return await realtime(client, seconds)
            case _:
                return await agents(url, key, seconds)
    except Exception as error:  # before the upgrade
        return {"refused": f"{type(error).__name__}: {error}"}


print(json.dumps(asyncio.run(main(*sys.argv[1:4], float(sys.argv[4])))))
