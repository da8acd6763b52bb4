"""The interface of a wire protocol: bytes to and from audio, text and control. Conversations use only this interface.

Called by connections (event loop), and for audio by the hearing and the speech thread. `server/chat_protocol.py` implements
the protocol of `/api/chat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pplex.runtime.arrays import Pcm

Message = bytes | str  # a binary or a text message of a WebSocket


class Received(NamedTuple):
    """The audio of one message."""

    pcm: Pcm  # [n] 24 kHz
    skipped: int  # earlier samples at 24 kHz that were not decoded
    is_audio: bool  # whether something was decoded; damaged parts become silence and do not count


@dataclass(frozen=True)
class AudioMessage:
    """A message with the user's audio, not yet decoded."""

    payload: bytes


@dataclass(frozen=True)
class IgnoredMessage:
    """A message without a meaning in this protocol. It is counted and logged by `kind`."""

    kind: str


@dataclass(frozen=True)
class ControlMessage:
    """A valid message from a client without effect."""


ClientMessage = AudioMessage | IgnoredMessage | ControlMessage


class WireProtocol(Protocol):
    """One connection's protocol, with the state of its codecs."""

    audio: str  # format of the audio, as in the metadata
    early_metadata: bool  # whether metadata and pings may be sent before the handshake
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
        """Make the codecs, before the first frame. Not in the event loop, because it takes a millisecond."""

    @property
    def bad_audio(self) -> int:
        """The number of damaged parts in the client's audio."""

    def decode(self, payload: bytes, limit: int) -> Received:
        """The samples that a payload completes, at most the newest `limit`. Raises ProtocolError if it is not audio."""

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> list[Message]:
        """The messages for one frame [1920] and its text, in order; at least one."""
