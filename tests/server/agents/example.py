"""Runs an example of docs/apis.md, for tests/server/test_agents.py, until the agent has said something.

example.py livekit|pipecat|openai-agents < CODE      prints what the agent said
"""

import ast
import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Run = Callable[[Mapping[str, Any]], Awaitable[None]]


async def livekit(example: Mapping[str, Any]) -> None:
    session = example["session"]
    handle = session.generate_reply(instructions="Greet the user.")
    await handle.wait_for_playout()
    print(*(item.text_content for item in handle.chat_items))
    await session.aclose()


async def pipecat(example: Mapping[str, Any]) -> None:
    from pipecat.frames.frames import EndFrame, LLMRunFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
    from pipecat.workers.runner import WorkerRunner

    context: LLMContext = LLMContext()
    pair = LLMContextAggregatorPair(context)
    worker = PipelineWorker(Pipeline([pair.user(), example["llm"], pair.assistant()]))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await worker.queue_frames([LLMRunFrame()])
    while not context.messages:
        await asyncio.sleep(0.05)
    print(context.messages[0]["content"])
    await worker.queue_frames([EndFrame()])
    await running


async def openai_agents(example: Mapping[str, Any]) -> None:
    async with example["session"] as session:
        await session.send_message("Hello")
        async for event in session:
            if event.type == "history_updated":
                said = [part.transcript for item in event.history if item.role == "assistant" for part in item.content]
            elif event.type == "agent_end":
                print(*said)
                break


RUNS: dict[str, Run] = {"livekit": livekit, "pipecat": pipecat, "openai-agents": openai_agents}


async def main(name: str) -> None:
    names: dict[str, Any] = {}
    if name == "livekit":
        from livekit.agents import NOT_GIVEN

        names["room"] = NOT_GIVEN  # a session without a room
    code = compile(sys.stdin.read(), "docs/apis.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    done = eval(code, names)
    if inspect.isawaitable(done):
        await done
    await RUNS[name](names)


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 30))
