"""An agent of Pipecat's in a whole pipeline without a transport, for tests/server/test_agents.py.

pipecat_agent.py live|realtime URL KEY SECONDS      prints what came back as JSON
"""

import asyncio
import json
import sys
from typing import Any

from microphone import RATE, speech
from pipecat.frames.frames import EndFrame, ErrorFrame, Frame, InputAudioRawFrame, LLMRunFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.live.llm import OpenAILiveLLMService
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

SERVICES = {
    "live": (OpenAILiveLLMService, "/v1/live/sessions"),
    "realtime": (OpenAIRealtimeLLMService, "/v1/realtime"),
}


class Loudspeaker(FrameProcessor):
    """Counts what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.samples, self.kinds, self.errors = 0, set[str](), list[str]()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.kinds.add(type(frame).__name__)
        if isinstance(frame, OutputAudioRawFrame):
            self.samples += len(frame.audio) // 2
        if isinstance(frame, ErrorFrame):
            self.errors.append(frame.error)
        await self.push_frame(frame, direction)


async def main(protocol: str, url: str, key: str, seconds: float) -> None:
    service, path = SERVICES[protocol]
    address = url.replace("http", "ws", 1) + path
    llm = service(api_key=key, base_url=address, settings=service.Settings(system_instruction="You are kind."))
    context: LLMContext = LLMContext(messages=[{"role": "developer", "content": "Be brief."}])
    pair, loudspeaker = LLMContextAggregatorPair(context), Loudspeaker()
    worker = PipelineWorker(
        Pipeline([pair.user(), llm, loudspeaker, pair.assistant()]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
    )
    fatal = list[str]()

    @worker.event_handler("on_pipeline_error")
    async def on_error(worker: Any, frame: ErrorFrame) -> None:
        fatal.append(frame.error)

    async def feed() -> None:
        await worker.queue_frames([LLMRunFrame()])
        async for block in speech(seconds):
            await worker.queue_frames([InputAudioRawFrame(block, RATE, 1)])
        await worker.queue_frames([EndFrame()])

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), feed())
    facts = {"seconds": loudspeaker.samples / RATE, "errors": loudspeaker.errors + fatal}
    texts = {
        role: [each["content"] for each in context.messages if each["role"] == role] for role in ("assistant", "user")
    }
    print(
        json.dumps({**facts, "history": texts["assistant"], "user": texts["user"], "kinds": sorted(loudspeaker.kinds)})
    )


asyncio.run(main(*sys.argv[1:4], float(sys.argv[4])))
