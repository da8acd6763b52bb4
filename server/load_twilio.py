"""Twilio Media Streams in the load test: a call as Twilio makes it. No I/O; called by `server.load_protocols`.

The server does not tell Twilio when a conversation listens. So a call begins with one frame of silence: its reply means that
the conversation is primed, and from then on each frame has its reply.
"""

import base64
import json
import secrets
import textwrap
from collections.abc import Mapping

from pplex.server.frame_counter import FRAME_BYTES, FrameCounter
from pplex.server.load_wire import SILENCE_S, Asked, Event, LoadWire, Ready, Replied
from pplex.server.sounds import BY_LABEL
from pplex.server.wire import Message

PACKET_BYTES = 160  # 20 ms
BYTES_PER_MS = 8
PERSONA_PIECE = 480  # characters; a parameter may have 500 with its name


class TwilioWire(LoadWire):
    """See `LoadWire`."""

    name, path = "twilio", "/twilio"
    answers_all, has_pauses, closes_after_error = True, False, True
    silence_s, token_in_header = SILENCE_S, False

    def __init__(self, asked: Asked):
        self._asked, self._frames = asked, FrameCounter(asked.audio)
        self._sound = BY_LABEL[asked.audio]
        self._stream, self._call = f"MZ{secrets.token_hex(16)}", f"CA{secrets.token_hex(16)}"
        self._messages = self._packets = self._sent_bytes = 0
        self._is_ready = False

    def query(self) -> Mapping[str, str]:
        return {}

    def begin(self) -> list[Message]:
        asked = self._asked
        given = {
            "voice": asked.voice,
            **_parts(asked.persona),
            "seed": None if asked.seed is None else str(asked.seed),
            "token": asked.token,
        }
        start = {
            "accountSid": f"AC{secrets.token_hex(16)}",
            "callSid": self._call,
            "streamSid": self._stream,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": self._sound.rate_hz, "channels": 1},
            "customParameters": {name: value for name, value in given.items() if value is not None},
        }
        connected = json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        packets = [self._sound.silence(PACKET_BYTES)] * (FRAME_BYTES[asked.audio] // PACKET_BYTES)
        return [connected, self._event("start", start), *map(self.audio, packets)]

    def audio(self, payload: bytes) -> Message:
        self._packets += 1
        media = {
            "track": "inbound",
            "chunk": str(self._packets),
            "timestamp": str(self._sent_bytes // BYTES_PER_MS),
            "payload": base64.b64encode(payload).decode(),
        }
        self._sent_bytes += len(payload)
        return self._event("media", media)

    def parse(self, message: Message) -> Event | None:
        event = json.loads(message)
        if event["event"] != "media" or event["streamSid"] != self._stream:
            return None
        frames = self._frames.push(base64.b64decode(event["media"]["payload"]))
        if self._is_ready or not frames:
            return Replied(frames)
        self._is_ready = True
        return Ready()

    def end(self) -> list[Message]:
        return [self._event("stop", {"callSid": self._call})]

    def _event(self, name: str, content: Mapping[str, object]) -> str:
        self._messages += 1
        return json.dumps(
            {"event": name, "sequenceNumber": str(self._messages), "streamSid": self._stream, name: content}
        )


def _parts(persona: str | None) -> dict[str, str]:
    """A persona as parameters of the length that Twilio allows. The server puts a space between them."""
    if persona is None:
        return {}
    pieces = textwrap.wrap(persona, PERSONA_PIECE) or [""]
    return {"persona" if i == 1 else f"persona_{i}": piece for i, piece in enumerate(pieces, 1)}
