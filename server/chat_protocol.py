"""The wire protocol of `/api/chat` on one connection: kinds and payloads (`chat_messages.py`) around a codec (`formats.py`).

Called by `server.chat_routes`.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pplex.runtime.arrays import Pcm
from pplex.server.chat_messages import Kind, pack, pack_metadata, unpack
from pplex.server.chat_request import ChatRequest
from pplex.server.foreign_audio import LONGEST_MARK
from pplex.server.formats import Receiver, Sender, make_receiver, make_sender
from pplex.server.limits import MAX_MESSAGE
from pplex.server.wire import (
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    IgnoredMessage,
    Message,
    NoEffectMessage,
    OrderMessage,
    Received,
    WireProtocol,
)

# The decoder of the official web client is ready a second after it connects. It loses audio that arrives earlier. Its second
# begins later than ours: when it receives the answer to its upgrade.
DECODER_STARTS_S = 1.2


class ChatProtocol(WireProtocol):
    """See `WireProtocol`."""

    name = "chat"
    max_message = MAX_MESSAGE
    can_resume, has_pauses = True, False

    def __init__(self, request: ChatRequest):
        self.audio, self._received = request.audio, 0  # bytes of audio
        self.early_metadata, self.controls = request.early_metadata, request.control
        self.hears_after_s = 0.0 if request.knows_us else DECODER_STARTS_S

    # Event loop.

    def parse(self, message: Message) -> ClientMessage:
        if isinstance(message, str):
            return IgnoredMessage("text message")
        kind, payload = unpack(message)
        if kind is None:
            return IgnoredMessage("unknown kind" if message else "empty message")
        if kind is Kind.AUDIO:
            return AudioMessage(payload)
        return OrderMessage(payload) if kind is Kind.METADATA and self.controls else NoEffectMessage()

    def handshake(self) -> Message:
        return pack(Kind.HANDSHAKE)

    def metadata(self, content: Mapping[str, Any]) -> list[Message]:
        return [pack_metadata(content)]

    def farewell(self, why: CloseReason) -> tuple[list[Message], Close]:
        """An error says why, unless the client has gone, or may return."""
        is_told = why.code is not None and not why.resumable
        return [pack(Kind.ERROR, why.reason.encode())] if is_told else [], why.code or Close.INTERNAL

    def ping(self) -> Message:
        return pack(Kind.PING)

    def samples_in(self, payload: bytes) -> int | None:
        """None for what may be refused: the beginning, half a sample, and any other format."""
        before, self._received = self._received, self._received + len(payload)
        if self.audio != "s16" or before < LONGEST_MARK or len(payload) % 2:
            return None
        return len(payload) // 2

    # Hearing thread.

    def prepare(self) -> None:
        _ = self._receiver, self._sender

    @property
    def bad_audio(self) -> int:
        return self._receiver.bad

    def decode(self, payload: bytes, limit: int) -> Received:
        return self._receiver.push(payload, limit)

    @cached_property
    def _receiver(self) -> Receiver:
        return make_receiver(self.audio)

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> list[Message]:
        messages: list[Message] = [pack(Kind.TEXT, text.encode())] if text else []
        return messages + [pack(Kind.AUDIO, payload) for payload in self._sender.frame(pcm)]

    @cached_property
    def _sender(self) -> Sender:
        return make_sender(self.audio)
