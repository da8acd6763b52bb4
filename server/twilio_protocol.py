"""Twilio Media Streams on one connection: the audio of a telephone call, from JSON to samples and back. No I/O.

Called by `server.twilio_routes` and by connections. docs/apis.md says what works.
"""

import base64
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pplex.runtime.arrays import Pcm
from pplex.server.limits import MAX_MESSAGE
from pplex.server.sounds import TELEPHONE, SoundReceiver, SoundSender, unpacked
from pplex.server.twilio_start import MediaStart, StartError, TwilioTerms, parse_start
from pplex.server.wire import (
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    ClosingMessage,
    IgnoredMessage,
    Message,
    NoEffectMessage,
    ProtocolError,
    Received,
    StartMessage,
    WireProtocol,
)

BYTES_PER_MS = TELEPHONE.rate_hz // 1000
PACKET_MS = 20  # shorter gaps are inaccurate timestamps
MAX_GAP_MS = 1000
MAX_DIGITS = 15  # of a timestamp
WITHOUT_EFFECT = ("connected", "dtmf", "mark")


class TwilioProtocol(WireProtocol):
    """See `WireProtocol`. Twilio is the client. It knows only `media` of what we could send."""

    name = "twilio"
    max_message = MAX_MESSAGE
    audio = TELEPHONE.label
    can_resume, has_pauses, early_metadata, controls = False, False, False, False
    plays_at_once, starts_at_once = True, True
    hears_after_s = 0.0

    def __init__(self, terms: TwilioTerms):
        self._terms = terms
        self._start: MediaStart | None = None
        self._timeline = Timeline()

    # From the client: event loop.

    def parse(self, message: Message) -> ClientMessage:
        if isinstance(message, bytes):
            raise ProtocolError(Close.UNSUPPORTED, "This protocol has text messages only.")
        event = _event(message)
        if event is None:
            return IgnoredMessage("not an event")
        kind = event["event"]
        if kind == "media":
            return self._media(event.get("media"))
        if kind == "start":
            return self._begin(event)
        if kind == "stop":
            return ClosingMessage()
        return NoEffectMessage() if kind in WITHOUT_EFFECT else IgnoredMessage("unknown event")

    def _begin(self, event: Mapping[str, Any]) -> ClientMessage:
        if self._start is not None:
            return IgnoredMessage("second start")
        try:
            self._start = parse_start(event, self._terms)
        except StartError as error:
            raise ProtocolError(Close.POLICY, str(error), error.cause) from error
        return StartMessage(self._start.request)

    def _media(self, media: Any) -> ClientMessage:
        if self._start is None:
            return IgnoredMessage("media before start")
        payload = unpacked(media.get("payload")) if type(media) is dict else None
        if payload is None:
            return IgnoredMessage("damaged media")  # the next timestamp shows the gap
        if media.get("track", "inbound") != "inbound":
            return IgnoredMessage("media of another track")
        gap_ms = self._timeline.gap_ms(_whole(media.get("timestamp")), len(payload) / BYTES_PER_MS)
        heard = TELEPHONE.silence(gap_ms * BYTES_PER_MS) + payload
        return AudioMessage(heard) if heard else NoEffectMessage()

    # To the client: event loop.

    def handshake(self) -> None:
        return None

    def metadata(self, content: Mapping[str, Any]) -> list[Message]:
        return []

    def farewell(self, why: CloseReason) -> tuple[list[Message], Close]:
        if why.code is None:
            return [], Close.INTERNAL
        return [], Close.POLICY if why.code is Close.NOT_READING else why.code

    def ping(self) -> None:
        return None

    def samples_in(self, payload: bytes) -> float:
        return TELEPHONE.samples(len(payload))

    # Hearing thread.

    bad_audio = 0  # it is ignored, and counted there

    def prepare(self) -> None:
        _ = self._receiver, self._sender

    def decode(self, payload: bytes, limit: int) -> Received:
        return self._receiver.push(payload, limit)

    @cached_property
    def _receiver(self) -> SoundReceiver:
        return SoundReceiver(TELEPHONE)

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> list[Message]:
        payload = base64.b64encode(self._sender.frame(pcm)).decode()
        return [f'{{"event":"media","streamSid":{self._stream},"media":{{"payload":"{payload}"}}}}']

    @cached_property
    def _sender(self) -> SoundSender:
        return SoundSender(TELEPHONE)

    @cached_property
    def _stream(self) -> str:
        """The name of the stream as JSON."""
        assert self._start is not None
        return json.dumps(self._start.stream_sid)


class Timeline:
    """Finds lost audio. Twilio numbers only the packets that it has; a lost one leaves a gap between timestamps.

    timestamp    0    20    40    80    100
    packet       a    b     c     e     f       20 ms of silence are heard before e
    """

    def __init__(self) -> None:
        self._next_ms: float | None = None  # where the audio so far ends

    def gap_ms(self, begins_ms: float | None, lasts_ms: float) -> int:
        """The length of the silence to hear before a packet, at most 1 s. None: the packet has no timestamp."""
        if begins_ms is None:
            begins_ms = self._next_ms
        if begins_ms is None:
            return 0
        expected_ms = begins_ms if self._next_ms is None else self._next_ms
        if expected_ms - begins_ms > MAX_GAP_MS:  # an earlier timestamp was wrong
            expected_ms = begins_ms
        self._next_ms = max(expected_ms, begins_ms + lasts_ms)
        gap_ms = round(begins_ms - expected_ms)
        return min(gap_ms, MAX_GAP_MS) if gap_ms >= PACKET_MS else 0


def _event(message: str) -> Mapping[str, Any] | None:
    """The event in a message; None if it has none."""
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return event if type(event) is dict and type(event.get("event")) is str else None


def _whole(value: Any) -> int | None:
    """A number, which Twilio sends as a string; None if it is none."""
    text = str(value) if type(value) is int else value
    if type(text) is not str or len(text) > MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    return int(text)
