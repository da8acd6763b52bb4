"""A requested conversation, in the terms of every wire protocol. Called by `server.reception` and the parsers."""

from dataclasses import dataclass, field

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import PplexError
from pplex.runtime.sampling import Sampling


class RequestError(PplexError):
    """A refused request: an HTTP status, the reason, and the seconds until the client may try again."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None):
        super().__init__(reason)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True, kw_only=True)
class ConversationRequest:
    """The settings of a new conversation. `voice` is one of the bundle's, or None for none."""

    voice: str | None = None
    persona: str = ""
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    greeting: str | None = None  # what the agent says first
    snapshot: str | None = None  # key of the snapshot to continue
    ignored: tuple[str, ...] = ()  # parameters without effect: unknown, repeated, or not of this model


def session_facts(request: ConversationRequest, conversation: str, frame_size: int) -> dict[str, object]:
    """The metadata of a conversation, without its wire format and the key to resume it."""
    return {
        "type": "session",
        "id": conversation,
        "voice": request.voice,
        "seed": request.seed,
        "sample_rate": SAMPLE_RATE_HZ,
        "frame_size": frame_size,
        "ignored": list(request.ignored),
    }
