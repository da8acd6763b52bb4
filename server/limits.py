"""The limits of one client, and the bucket that measures a rate. Called by connections and `server.gate`."""

from dataclasses import dataclass

from pplex.runtime.config import SAMPLE_RATE_HZ

MAX_MESSAGE = 65536  # bytes
MAX_JSON_MESSAGE = 1 << 20  # bytes, in protocols of JSON
MAX_ORDER_MESSAGE = 2 << 20  # bytes: an order that is too large is refused, and the conversation goes on


@dataclass(frozen=True)
class Limits:
    """Limits. The command line sets some of them. Their names have the unit: seconds, frames or bytes."""

    queue: int = 16  # clients waiting for a slot
    queue_s: float = 120.0  # the longest wait
    backlog_frames: int = 4
    batch_wait_s: float = 0.01
    outbox_frames: int = 25  # replies that a client has not read
    idle_s: float = 60.0  # without audio
    duration_s: float = 3600.0
    resume_s: float = 30.0
    drain_s: float = 30.0
    header_s: float = 10.0  # for a connection's first request; for a start message that a client sends at once
    heartbeat_s: float = 10.0  # between WebSocket pings; half of it for the answer
    spare_connections: int = 128  # in addition to conversations: pages, metrics; half of them before a start message
    start_s: float = 300.0  # from the upgrade to the start message, in protocols that have one
    silence_after_s: float = 0.2  # without audio, in protocols with pauses: from then on the model hears silence
    pause_s: float = 600.0  # as idle_s, in protocols with pauses

    # A client that sends ten buffered seconds at once stays within these limits. A client that floods does not.
    messages: float = 1000
    messages_per_s: float = 250
    message_bytes: float = 2 << 20
    bytes_per_s: float = 256 << 10
    wire_bytes: float = 4 << 20  # all bytes of a connection: endless fragments would never count as a message
    wire_bytes_per_s: float = 512 << 10
    samples: float = 12.0 * SAMPLE_RATE_HZ
    samples_per_s: float = 2.0 * SAMPLE_RATE_HZ  # decoded; audio cannot be faster than real time for long

    # Personas and greetings of all clients: to check one takes the event loop about 1.5 us a character.
    prompt_characters: float = 65_536
    prompt_characters_per_s: float = 32_768

    # Orders to a running conversation. What a client may do to its memory takes longer than other orders.
    orders: float = 20
    orders_per_s: float = 5
    memory_orders: float = 4
    memory_orders_per_s: float = 0.5
    waiting_orders: int = 8
    order_bytes: int = 32768
    answers: int = 256  # that a client has not read
    answer_bytes: int = 4 << 20
    snapshots: int = 16  # of all conversations
    snapshot_bytes: int = 4 << 30  # of all snapshots
    snapshot_s: float = 600.0  # until a snapshot is dropped


class Bucket:
    """An allowance that refills at `rate` a second up to `size`; full at first."""

    def __init__(self, size: float, rate: float, now_s: float):
        self.size, self.rate, self._level, self._at_s = size, rate, size, now_s

    def level(self, now_s: float) -> float:
        """The amount that may be taken now."""
        self.take(0, now_s)
        return self._level

    def credit(self, seconds: float) -> None:
        """Add what `seconds` refill, even above the size."""
        self._level += seconds * self.rate

    def take(self, amount: float, now_s: float) -> bool:
        """Take `amount`. Returns False, and takes nothing, if the bucket has less."""
        level = self._level
        if level < self.size:
            level = min(self.size, level + (now_s - self._at_s) * self.rate)
        self._at_s, enough = now_s, level >= amount
        self._level = level - amount if enough else level
        return enough
