"""`/api/chat` in the load test, on the client's side. No I/O; called by `server.load_protocols`."""

import json
from collections.abc import Mapping

from pplex.server.chat_messages import PATH, Kind, pack, unpack
from pplex.server.chat_request import EARLY
from pplex.server.frame_counter import FrameCounter
from pplex.server.load_wire import PING_SILENCE_S, Asked, Complaint, Dropped, Event, LoadWire, Ready, Replied
from pplex.server.wire import Message


class ChatWire(LoadWire):
    """See `LoadWire`."""

    name, path = "chat", PATH
    answers_all, has_pauses, closes_after_error = True, False, True
    silence_s, token_in_header = PING_SILENCE_S, True

    def __init__(self, asked: Asked):
        self._asked, self._frames = asked, FrameCounter(asked.audio)

    def query(self) -> Mapping[str, str]:
        asked = self._asked
        query = {
            "audio": asked.audio,
            "voice_prompt": asked.voice,
            "text_prompt": asked.persona,
            "seed": None if asked.seed is None else str(asked.seed),
            EARLY: "1",
        }
        return {name: value for name, value in query.items() if value is not None}

    def begin(self) -> list[Message]:
        return []

    def audio(self, payload: bytes) -> Message:
        return pack(Kind.AUDIO, payload)

    def parse(self, message: Message) -> Event | None:
        kind, payload = unpack(message) if isinstance(message, bytes) else (None, b"")
        match kind:
            case Kind.HANDSHAKE:
                return Ready()
            case Kind.AUDIO:
                return Replied(self._frames.push(payload))
            case Kind.ERROR:
                return Complaint(payload.decode(errors="replace").strip())
            case Kind.METADATA:
                metadata = json.loads(payload)
                return Dropped(metadata["frames"]) if metadata.get("type") == "dropped" else None
        return None

    def end(self) -> list[Message]:
        return []
