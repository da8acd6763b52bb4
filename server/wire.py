"""A wire protocol: bytes to and from audio, text and control. A conversation knows nothing else of how it travels.

Called by connections (event loop), and for audio by the hearing and the speech thread.
The protocol of `/api/chat` is in `server/chat_protocol.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pplex.runtime.arrays import Pcm

Message = bytes | str  # a binary or a text message of a WebSocket


class Received(NamedTuple):
    """The audio of one message."""

    pcm: Pcm  # [n] 24 kHz
    skipped: int  # samples at 24 kHz before them that were not decoded
    is_audio: bool  # whether anything was decoded; damaged parts become silence, and do not count


@dataclass(frozen=True)
class AudioMessage:
    """A message with the user's audio, not yet decoded."""

    payload: bytes


@dataclass(frozen=True)
class IgnoredMessage:
    """A message that means nothing in this protocol: counted and logged by `kind`."""

    kind: str


@dataclass(frozen=True)
class ControlMessage:
    """A message that a client may send and that changes nothing."""


ClientMessage = AudioMessage | IgnoredMessage | ControlMessage


class WireProtocol(Protocol):
    """One connection's protocol, with the state of its codecs."""

    audio: str  # how audio travels, as metadata names it
    early_metadata: bool  # whether metadata and pings may go out before the handshake
    hears_after_s: float  # seconds from the upgrade until the client can hear, unless it speaks earlier

    # Event loop.

    def parse(self, message: Message) -> ClientMessage:
        """Classify a client's message. Raises ProtocolError."""

    def handshake(self) -> Message: ...

    def metadata(self, content: Mapping[str, Any]) -> Message: ...

    def error(self, reason: str) -> Message: ...

    def ping(self) -> Message: ...

    # Hearing thread.

    def prepare(self) -> None:
        """Make the codecs, before the first frame and outside the event loop: it takes a millisecond."""

    @property
    def bad_audio(self) -> int:
        """Damaged parts of the client's audio so far."""

    def decode(self, payload: bytes, limit: int) -> Received:
        """The samples that a payload completes, the newest `limit` of them. Raises ProtocolError if it is not audio."""

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> list[Message]:
        """The messages of one frame [1920] and what it says, in order; at least one."""
