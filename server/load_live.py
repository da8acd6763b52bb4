"""GPT-Live in the load test, on the client's side. No I/O; called by `server.load_protocols`."""

import base64
import json
from collections.abc import Mapping

from pplex.server.frame_counter import FrameCounter
from pplex.server.load_wire import SILENCE_S, Asked, Complaint, Event, LoadWire, Ready, Replied
from pplex.server.sounds import BY_LABEL
from pplex.server.wire import Message


class LiveWire(LoadWire):
    """See `LoadWire`."""

    name, path = "live", "/v1/live/sessions"
    answers_all, has_pauses, closes_after_error = True, True, True
    silence_s, token_in_header = SILENCE_S, True

    def __init__(self, asked: Asked):
        self._asked, self._frames = asked, FrameCounter(asked.audio)

    def query(self) -> Mapping[str, str]:
        return {} if self._asked.seed is None else {"seed": str(self._asked.seed)}

    def begin(self) -> list[Message]:
        sound = BY_LABEL[self._asked.audio]
        audio: dict[str, object] = {"format": {"type": sound.name, "rate": sound.rate_hz}}
        if self._asked.voice is not None:
            audio["output"] = {"voice": self._asked.voice}
        session = {"model": "personaplex", "instructions": self._asked.persona, "audio": audio}
        return [json.dumps({"type": "session.start", "session": session})]

    def audio(self, payload: bytes) -> Message:
        return f'{{"type":"session.input_audio.append","audio":"{base64.b64encode(payload).decode()}"}}'

    def parse(self, message: Message) -> Event | None:
        event = json.loads(message)
        match event["type"]:
            case "session.started":
                return Ready()
            case "session.output_audio.delta":
                return Replied(self._frames.push(base64.b64decode(event["delta"])))
            case "error":
                return Complaint(event["error"]["message"])
        return None

    def end(self) -> list[Message]:
        return ['{"type":"session.close"}']
