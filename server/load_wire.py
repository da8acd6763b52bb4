"""The interface of a client's protocol in the load test: messages to and from events. No I/O.

Called by `server.load`. It is the counterpart of `server.wire.WireProtocol`; a `load_*` module implements each protocol.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pplex.server.wire import Message

# Without a message until the server counts as lost.
PING_SILENCE_S = 10.0  # in a protocol with pings of its own, at least every 2 s
SILENCE_S = 30.0


@dataclass(frozen=True)
class Asked:
    """What a session asks for. None: the server's default."""

    audio: str
    voice: str | None = None
    persona: str | None = None
    seed: int | None = None
    token: str | None = None


@dataclass(frozen=True)
class Ready:
    """The conversation listens from now on."""


@dataclass(frozen=True)
class Replied:
    """The agent's audio: the frames that this message completes. begins: whether a pause before it is no gap."""

    frames: int
    begins: bool = False


@dataclass(frozen=True)
class Dropped:
    """The number of our frames that the server has dropped until now."""

    frames: int


@dataclass(frozen=True)
class Complaint:
    """An error: the server's sentence. The connection may go on."""

    reason: str


Event = Ready | Replied | Dropped | Complaint


class LoadWire(Protocol):
    """One connection of a client, with the state of its protocol.

    answers_all: whether each frame gets exactly one reply, in order. has_pauses: whether the server fills a pause of the
    client with silence, and answers it. closes_after_error: whether an error before `Ready` ends the connection.
    silence_s: without a message until the server counts as lost.
    """

    name: str
    path: str
    answers_all: bool
    has_pauses: bool
    closes_after_error: bool
    silence_s: float
    token_in_header: bool  # or in a message

    def __init__(self, asked: Asked): ...

    def query(self) -> Mapping[str, str]:
        """The settings in the address."""

    def begin(self) -> list[Message]:
        """The messages that ask for a conversation. `Ready` is the answer."""

    def audio(self, payload: bytes) -> Message:
        """The message with a payload of a `Speaker`."""

    def parse(self, message: Message) -> Event | None:
        """What the server says; None if it does not matter."""

    def end(self) -> list[Message]:
        """The messages that end the conversation. The server closes after them; without any, the client closes."""
