"""The interface of a wire protocol: bytes to and from audio, text and control. Conversations use only this interface.

Called by connections (event loop), and for audio by the hearing and the speech thread. `server/chat_protocol.py` implements
the protocol of `/api/chat`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.request import ConversationRequest

FRAME_SIZE = 1920  # samples
FRAME_S = FRAME_SIZE / SAMPLE_RATE_HZ  # 80 ms
Message = bytes | str  # a binary or a text message of a WebSocket
# A frame's messages; or what makes them in the event loop, if they depend on what the client sends meanwhile.
Encoded = list[Message] | Callable[[], list[Message]]


class Close(IntEnum):
    """Close codes. 1000 only if the client asked for it: after it, a known client reconnects a thousand times a second."""

    NORMAL = 1000
    GOING_AWAY = 1001
    UNSUPPORTED = 1003
    INVALID = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    RESTARTING = 1012
    TRY_LATER = 1013
    RESUMED_ELSEWHERE = 4001
    NOT_READING = 4002


class ProtocolError(Exception):
    """A message that ends the connection: `code` to close with, the reason, and the metric's cause."""

    def __init__(self, code: Close, reason: str, cause: str = "protocol"):
        super().__init__(reason)
        self.code, self.cause = code, cause


@dataclass(frozen=True)
class CloseReason:
    """Why a connection ends: the close code (None if the client has gone), the sentence, and the metric's cause."""

    code: Close | None
    reason: str
    cause: str
    resumable: bool = False


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
class OrderMessage:
    """A message with an order to the conversation as JSON, not yet read (`server.orders`), and the protocol's answers."""

    payload: bytes
    answers: tuple[Message, ...] = ()


@dataclass(frozen=True)
class IgnoredMessage:
    """A message without a meaning in this protocol. It is counted and logged by `kind`."""

    kind: str


@dataclass(frozen=True)
class NoEffectMessage:
    """A valid message without effect."""


@dataclass(frozen=True)
class AnsweredMessage:
    """A message that the protocol answers by itself."""

    answers: tuple[Message, ...]


@dataclass(frozen=True)
class StartMessage:
    """The settings of a conversation, in a protocol whose client sends them over the open WebSocket, and the answers."""

    request: ConversationRequest
    answers: tuple[Message, ...] = ()


@dataclass(frozen=True)
class ClosingMessage:
    """The client asks for the end of the conversation, and waits for it."""


ClientMessage = (
    AudioMessage | OrderMessage | IgnoredMessage | NoEffectMessage | AnsweredMessage | StartMessage | ClosingMessage
)


class WireProtocol(Protocol):
    """One connection's protocol, with the state of its codecs.

    A message that the protocol does not have is None, and nothing is sent. Audio is [n] float32 at 24 kHz: a protocol with
    another rate resamples in `decode` and `encode`. `server.limits` bounds the size and the rate of messages.
    """

    name: str  # of the protocol, in metrics and the log
    max_message: int  # bytes of a message that is not an order
    has_pauses: bool  # whether a client may send no audio for a while: the model hears silence
    audio: str  # format of the audio, as in the metadata
    can_resume: bool  # whether a client may return to its conversation after the connection is lost
    early_metadata: bool  # whether metadata and pings may be sent before the handshake
    controls: bool  # whether the client may send orders, and gets their answers as metadata
    starts_at_once: bool = False  # whether a client sends its start message, if the protocol has one, without waiting
    hears_after_s: float  # seconds from the upgrade until the client can hear, unless it speaks earlier

    @property
    def plays_at_once(self) -> bool:
        """Whether a client plays each reply when it comes. Then late audio is not answered in a burst."""
        return self.has_pauses

    @property
    def takes_words(self) -> bool:
        """Whether the client gets its user's words now, if the server transcribes: as metadata `heard`."""
        return False

    # Event loop.

    def parse(self, message: Message) -> ClientMessage:
        """Classify a client's message. Raises ProtocolError."""

    def opened(self) -> list[Message]:
        """Sent just after the upgrade, in a protocol whose settings come over the open WebSocket."""
        return []

    def overdue(self) -> StartMessage | None:
        """Starts a conversation whose client expects that without a message for it. Called often before the start."""
        return None

    def handshake(self) -> Message | None:
        """Tells the client that the conversation listens."""

    def metadata(self, content: Mapping[str, Any]) -> list[Message]:
        """Facts for the client: `content["type"]` is queued, session, dropped, done, refused or said (docs/protocol.md).

        With `takes_words` also heard: the `words` in an utterance of the user (`server.user_utterances`).
        """

    def farewell(self, why: CloseReason) -> tuple[list[Message], Close]:
        """The last messages of a connection, and the code to close it with."""

    def ping(self) -> Message | None:
        """Sent after a silence of 2 s."""

    def samples_in(self, payload: bytes) -> float | None:
        """Samples at 24 kHz in a payload of plain samples. None if only `decode` can tell, or may refuse it."""
        return None

    # Hearing thread.

    def prepare(self) -> None:
        """Make the codecs, before the first frame. Not in the event loop, because it takes a millisecond."""

    @property
    def bad_audio(self) -> int:
        """The number of damaged parts in the client's audio."""

    def decode(self, payload: bytes, limit: int) -> Received:
        """The samples that a payload completes, at most the newest `limit`. Raises ProtocolError if it is not audio."""

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> Encoded:
        """The messages for one frame [1920] and its text, in order."""
