"""OpenAI's Realtime API in the load test, on the client's side. No I/O; called by `server.load_protocols`.

The server sends audio only in responses, so frames and replies are not paired. A conversation is ready when it has taken the
first `response.create`.
"""

import base64
import json
from collections.abc import Mapping

from pplex.server.frame_counter import FrameCounter
from pplex.server.load_wire import SILENCE_S, Asked, Complaint, Event, LoadWire, Ready, Replied
from pplex.server.sounds import BY_LABEL
from pplex.server.wire import Message


class RealtimeWire(LoadWire):
    """See `LoadWire`."""

    name, path = "realtime", "/v1/realtime"
    answers_all, has_pauses, silence_s, token_in_header = False, True, SILENCE_S, True

    def __init__(self, asked: Asked):
        self._asked, self._frames = asked, FrameCounter(asked.audio)
        self._is_ready = self._begins = False

    def query(self) -> Mapping[str, str]:
        seed = {} if self._asked.seed is None else {"seed": str(self._asked.seed)}
        return {"model": "personaplex", **seed}

    def begin(self) -> list[Message]:
        sound = BY_LABEL[self._asked.audio]
        form: dict[str, object] = {"type": sound.name} | ({} if sound.law else {"rate": sound.rate_hz})
        output = {"format": form} | ({} if self._asked.voice is None else {"voice": self._asked.voice})
        session: dict[str, object] = {"type": "realtime", "audio": {"input": {"format": form}, "output": output}}
        if self._asked.persona is not None:
            session["instructions"] = self._asked.persona
        return [json.dumps({"type": "session.update", "session": session}), '{"type":"response.create"}']

    def audio(self, payload: bytes) -> Message:
        return f'{{"type":"input_audio_buffer.append","audio":"{base64.b64encode(payload).decode()}"}}'

    def parse(self, message: Message) -> Event | None:
        event = json.loads(message)
        match event["type"]:
            case "response.created":
                self._begins = True
                if not self._is_ready:
                    self._is_ready = True
                    return Ready()
            case "response.output_audio.delta":
                begins, self._begins = self._begins, False
                return Replied(self._frames.push(base64.b64decode(event["delta"])), begins)
            case "error":
                return Complaint(event["error"]["message"])
        return None

    def end(self) -> list[Message]:
        return []
