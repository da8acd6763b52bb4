"""An agent of LiveKit's in a whole session without a room, for tests/server/test_agents.py.

livekit_agent.py live|realtime URL KEY SECONDS      prints what came back as JSON
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice import io
from livekit.plugins.openai.realtime import GPTLiveModel, RealtimeModel
from microphone import BLOCK, RATE, speech

MODELS = {"live": GPTLiveModel, "realtime": RealtimeModel}


class Microphone(io.AudioInput):
    """The user."""

    def __init__(self, seconds: float):
        super().__init__(label="microphone")
        self._blocks = speech(seconds)

    async def __anext__(self) -> rtc.AudioFrame:
        return rtc.AudioFrame(await anext(self._blocks), RATE, 1, BLOCK)


class Loudspeaker(io.AudioOutput):
    """Plays at once, and counts."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self.samples = self._segment = 0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._segment:
            self.on_playback_started(created_at=time.time())
        self.samples += frame.samples_per_channel
        self._segment += frame.samples_per_channel

    def flush(self) -> None:
        super().flush()
        self._finish(False)

    def clear_buffer(self) -> None:
        self._finish(True)

    def _finish(self, interrupted: bool) -> None:
        if self._segment:
            self.on_playback_finished(playback_position=self._segment / RATE, interrupted=interrupted)
            self._segment = 0


async def ask_for_reply(session: AgentSession) -> list[str | None]:
    """What the agent says after `generate_reply`."""
    handle = session.generate_reply(instructions="Greet the user.")
    await asyncio.wait_for(handle.wait_for_playout(), 12)
    return [item.text_content for item in handle.chat_items if item.type == "message"]


async def main(protocol: str, url: str, key: str, seconds: float) -> None:
    session: AgentSession = AgentSession(
        llm=MODELS[protocol](base_url=f"{url}/v1", api_key=key), aec_warmup_duration=None
    )
    errors, failed = list[str](), asyncio.Event()

    def on_error(event: Any) -> None:
        errors.append(str(event.error))
        if not event.error.recoverable:
            failed.set()

    session.on("error", on_error)
    loudspeaker = Loudspeaker()
    session.input.audio, session.output.audio = Microphone(2 * seconds), loudspeaker
    await session.start(Agent(instructions="You are kind."))
    with suppress(TimeoutError):
        await asyncio.wait_for(failed.wait(), seconds)
    reply = await ask_for_reply(session) if protocol == "realtime" and not failed.is_set() else []
    began = time.monotonic()
    await session.aclose()
    history = [item.text_content for item in session.history.items if item.type == "message"]
    facts = {"seconds": loudspeaker.samples / RATE, "history": history, "reply": reply, "errors": errors}
    print(json.dumps({**facts, "failed": failed.is_set(), "close_s": time.monotonic() - began}))


asyncio.run(main(*sys.argv[1:4], float(sys.argv[4])))
