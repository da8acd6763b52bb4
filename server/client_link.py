"""One WebSocket of the client over `/api/chat`. Used by `client.py`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Self

from pplex.server.chat_messages import PATH, Kind, pack, pack_metadata
from pplex.server.chat_request import EARLY
from pplex.server.client_line import Line, LostError, UnreachableError

OnQueued = Callable[[int], object]


@dataclass(frozen=True)
class Facts:
    """The server's description of a conversation, sent just after the handshake."""

    id: str
    resume: str | None
    resume_seconds: float
    resumed: bool
    voice: str | None
    seed: int
    audio: str
    sample_rate: int
    frame_size: int
    ignored: tuple[str, ...]
    frame: int | None = None  # the next reply's number, if the connection has control

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        known = {name: metadata[name] for name in cls.__dataclass_fields__ if name in metadata}
        return cls(**{**known, "ignored": tuple(known["ignored"])})


class Link(Line):
    """One WebSocket: messages of the protocol out and in."""

    @classmethod
    async def open(
        cls, url: str, query: Mapping[str, str], token: str | None = None, ssl: SSLContext | bool = True
    ) -> Self:
        """Raises RefusedError, UnreachableError, and ConfigError for a token that no header can carry."""
        return await cls.connect(url, PATH, {**query, EARLY: "1"}, token, ssl)

    async def handshake(self, on_queued: OnQueued | None = None) -> Facts:
        """Wait until the conversation is primed and listens. Raises ClosedError, LostError, UnreachableError."""
        listens = False
        while True:
            kind, payload = await self.receive()
            metadata = json.loads(payload) if kind == Kind.METADATA else {}
            match metadata.get("type"):
                case "queued" if on_queued:
                    on_queued(metadata["position"])
                case "session" if listens:
                    return Facts.of(metadata)
            if listens and kind != Kind.PING:
                raise UnreachableError(
                    "No session metadata: this is not a pplex-export server. This client cannot talk to another server."
                )
            listens |= kind == Kind.HANDSHAKE

    async def receive(self) -> tuple[int, bytes]:
        """The next message: kind, payload. Raises ClosedError if the server closed, LostError if the connection was lost."""
        message = await self.next_message()
        if isinstance(message, str) or not message:
            raise LostError("The connection to the server is lost.")
        kind, payload = message[0], message[1:]
        if kind == Kind.ERROR:
            self.complaint = payload.decode(errors="replace").strip()
        return kind, payload

    async def send_audio(self, payload: bytes) -> None:
        """Raises LostError."""
        await self.send(pack(Kind.AUDIO, payload))

    async def send_metadata(self, content: Mapping[str, Any]) -> None:
        """Raises LostError."""
        await self.send(pack_metadata(content))
