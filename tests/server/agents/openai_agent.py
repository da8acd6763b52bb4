"""An agent of openai-agents in a whole session, for tests/server/test_agents.py.

openai_agent.py realtime URL KEY SECONDS      prints what came back as JSON
"""

import asyncio
import json
import sys
from typing import Any

from agents.realtime import RealtimeAgent, RealtimeRunner
from microphone import RATE, speech


async def talk(session: Any, seconds: float) -> None:
    """Speak, type a message, speak on, interrupt the agent, and leave."""
    async for block in speech(seconds):
        await session.send_audio(block)
    await session.send_message("Hello")
    async for block in speech(2):
        await session.send_audio(block)
    await session.interrupt()
    async for block in speech(2):
        await session.send_audio(block)
    await session.close()


async def main(url: str, key: str, seconds: float) -> None:
    runner = RealtimeRunner(RealtimeAgent(name="waiter", instructions="You are kind."))
    address = url.replace("http", "ws", 1) + "/v1/realtime"
    samples, kinds, errors, history = 0, set[str](), list[str](), list[Any]()
    async with await runner.run(model_config={"url": address, "api_key": key}) as session:
        talking = asyncio.create_task(talk(session, seconds))
        async for event in session:
            kinds.add(event.type)
            if event.type == "audio":
                samples += len(event.audio.data) // 2
            elif event.type == "error":
                errors.append(str(event.error))
            elif event.type == "history_updated":
                history = event.history
        await talking
    said = [
        [item.role, "".join(getattr(part, "transcript", None) or getattr(part, "text", "") for part in item.content)]
        for item in history
        if item.type == "message"
    ]
    print(json.dumps({"seconds": samples / RATE, "kinds": sorted(kinds), "errors": errors, "history": said}))


asyncio.run(main(*sys.argv[2:4], float(sys.argv[4])))
