"""OpenAI's Realtime API in the load test, on the client's side. No I/O; called by `server.load_protocols`.

The server sends audio only in responses, so frames and replies are not paired. It does not say when a conversation listens.
So a session asks for a response and sends one frame: audio, or the end of the response, means that it is primed.
"""

import base64
import json
from collections.abc import Mapping

from pplex.server.frame_counter import FRAME_BYTES, FrameCounter
from pplex.server.load_wire import SILENCE_S, Asked, Complaint, Event, LoadWire, Ready, Replied
from pplex.server.sounds import BY_LABEL
from pplex.server.wire import Message


class RealtimeWire(LoadWire):
    """See `LoadWire`."""

    name, path = "realtime", "/v1/realtime"
    answers_all, has_pauses, closes_after_error = False, True, False
    silence_s, token_in_header = SILENCE_S, True

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
        update = json.dumps({"type": "session.update", "session": session})
        return [update, '{"type":"response.create"}', self.audio(sound.silence(FRAME_BYTES[self._asked.audio]))]

    def audio(self, payload: bytes) -> Message:
        return f'{{"type":"input_audio_buffer.append","audio":"{base64.b64encode(payload).decode()}"}}'

    def parse(self, message: Message) -> Event | None:
        event = json.loads(message)
        match event["type"]:
            case "response.created":
                self._begins = True
            case "response.output_audio.delta" | "response.done" if not self._is_ready:
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
