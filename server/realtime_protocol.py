"""The Realtime API on one connection, `/v1/realtime`: from JSON to audio, text and control. No I/O.

A protocol of turns around a model without turns: the agent's utterances become responses (`server.utterances`).
Called by `server.realtime_routes` and by connections. docs/apis.md says what works.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import PplexError
from pplex.runtime.sampling import Sampling
from pplex.server.limits import MAX_JSON_MESSAGE
from pplex.server.openai_events import (
    INVALID,
    TOO_LONG,
    UNSUPPORTED,
    EventError,
    audio_of,
    check_size,
    decoded,
    event,
    fault_of,
    id_of,
    new_id,
    object_at,
    shown,
)
from pplex.server.openai_settings import MAX_INSTRUCTIONS, persona_at
from pplex.server.realtime_items import OF_PERSONA, Items, parse_item
from pplex.server.realtime_responses import Response
from pplex.server.realtime_session import RealtimeSession, changed, new_session
from pplex.server.realtime_transcripts import transcript_events
from pplex.server.request import ConversationRequest, RequestError
from pplex.server.sounds import SoundReceiver, SoundSender
from pplex.server.user_speech import UserSpeech
from pplex.server.utterances import SoundGate, Utterances
from pplex.server.wire import (
    AnsweredMessage,
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    Message,
    NoEffectMessage,
    OrderMessage,
    ProtocolError,
    Received,
    StartMessage,
    WireProtocol,
)

SETTLED_S = 0.25  # after the last setting until audio starts the conversation: clients send several in a row
UNTOLD_S = 1.0  # from the first audio until a conversation without instructions starts
MAX_CHECKS = 200  # of changed personas before the start: each takes milliseconds
MAX_METADATA = 16_384  # characters of JSON: it is sent back
CANCELLED = {"type": "cancelled", "reason": "client_cancelled"}


@dataclass(frozen=True)
class RealtimeTerms:
    """What the server offers a client, and what the client's address asked for.

    check: raises PplexError if the model cannot take a voice, a persona and a greeting. controls: whether the client may
    control its conversation. tells_speech: whether it gets events when its user begins and stops to speak.
    """

    voices: tuple[str, ...] = ()
    takes_prompt: bool = True
    model: str = "gpt-realtime"
    controls: bool = False
    tells_speech: bool = False
    duration_s: float = 3600.0
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    check: Callable[[ConversationRequest], None] = lambda asked: None


class RealtimeProtocol(WireProtocol):
    """See `WireProtocol`. The conversation starts with `response.create`, or with audio once there are instructions."""

    name, audio = "realtime", "pcm-24k"
    max_message = MAX_JSON_MESSAGE
    can_resume, has_pauses, plays_at_once, early_metadata = False, True, True, False
    hears_after_s = 0.0

    def __init__(self, terms: RealtimeTerms, clock: Callable[[], float] = time.monotonic):
        """`clock`: seconds, before the conversation; in it, time is counted in frames."""
        self._terms, self.controls, self._clock = terms, terms.controls, clock
        self._id, self._expires_at = new_id("sess"), round(time.time() + terms.duration_s)
        self._session = new_session(terms.model, terms.voices, terms.takes_prompt)
        self._is_started = False
        self._spoken_s: float | None = None  # when the first audio came
        self._set_s = -np.inf  # when the last setting came
        self._items, self._utterances, self._gate = Items(), Utterances(), SoundGate()
        self._checked: ConversationRequest | None = None  # the last one that the model can take
        self._checks = 0
        self._response: Response | None = None
        self._says = dict[str, str | None]()  # event_id of each response that asked for words, by order's id
        self._user = UserSpeech() if terms.tells_speech else None

    # From the client: event loop.

    def parse(self, message: Message) -> ClientMessage:
        if isinstance(message, bytes):
            raise ProtocolError(Close.UNSUPPORTED, "This protocol has text messages only.")
        event_id = None
        try:
            given = decoded(message)
            event_id = id_of(given)
            return self._take(given, event_id)
        except EventError as error:
            return AnsweredMessage((_error(error, event_id),))

    def _take(self, given: Mapping[str, Any], event_id: str | None) -> ClientMessage:
        kind = given["type"]
        if kind == "input_audio_buffer.append":
            return self._hear(given)
        if kind == "response.create":
            return self._create(given.get("response"), event_id)
        answer = ANSWERS.get(kind)
        if answer is None:
            known = ", ".join(("input_audio_buffer.append", "response.create", *ANSWERS))
            raise EventError("invalid_event", f"Unknown type {shown(kind)}. Known are {known}.", "type")
        return AnsweredMessage(tuple(answer(self, given)))

    def _hear(self, given: Mapping[str, Any]) -> ClientMessage:
        payload = audio_of(given)
        if not payload:
            return NoEffectMessage()
        if self._spoken_s is None:
            self._spoken_s = self._clock()
        return AudioMessage(payload)

    def _update(self, given: Mapping[str, Any]) -> list[Message]:
        new = changed(self._session, given.get("session"), self._terms.voices, self._terms.takes_prompt)
        if self._is_started:
            new = new.in_force(self._session)
        else:
            self._check(new)
        self._session, self._set_s = new, self._clock()
        return [event("session.updated", session=self._resolved())]

    def _resolved(self) -> dict[str, Any]:
        own = {"voice": self._session.voice, "seed": self._terms.seed}
        return {**self._session.to_dict(), "id": self._id, "expires_at": self._expires_at, "personaplex": own}

    def _check(self, session: RealtimeSession, greeting: str | None = None) -> None:
        """Check that the model can take this. Once the conversation starts, it is too late for an error."""
        asked, param = (
            self._request(session, greeting),
            "response.personaplex.say" if greeting else "session.instructions",
        )
        if asked == self._checked:
            return
        if len(asked.persona) > MAX_INSTRUCTIONS:
            raise EventError(TOO_LONG, f"All instructions together may have {MAX_INSTRUCTIONS:,} characters.", param)
        self._checks += 1
        if self._checks > MAX_CHECKS:
            raise EventError("rate_limit_exceeded", f"A persona may change {MAX_CHECKS} times before the start.", param)
        try:
            self._terms.check(asked)
        except PplexError as error:
            busy = isinstance(error, RequestError) and error.status == 503
            code = "server_busy" if busy else INVALID if greeting else TOO_LONG
            raise EventError(code, str(error), param) from error
        self._checked = asked

    def _request(self, session: RealtimeSession, greeting: str | None) -> ConversationRequest:
        texts = [session.instructions, *self._items.persona()]
        return ConversationRequest(
            voice=session.voice,
            persona="\n".join(filter(None, texts)) if self._terms.takes_prompt else "",
            seed=self._terms.seed,
            sampling=self._terms.sampling,
            greeting=greeting,
        )

    # Items.

    def _add_item(self, given: Mapping[str, Any]) -> list[Message]:
        item, before = parse_item(given.get("item")), self._items
        if not self._is_started:
            self._items = before.copy()
        previous = self._items.add(item, given.get("previous_item_id"))
        if not self._is_started and item.get("role") in OF_PERSONA:
            try:
                self._check(self._session)
            except EventError:
                self._items = before
                raise
        self._set_s = self._clock()
        kinds = ("conversation.item.added", "conversation.item.done")
        return [event(kind, previous_item_id=previous, item=item) for kind in kinds]

    # Responses.

    def _create(self, given: Any, event_id: str | None) -> ClientMessage:
        wanted = object_at(given, "response", optional=True)
        if wanted.get("conversation") == "none":
            message = "This server has one conversation: it cannot answer outside of it."
            raise EventError(UNSUPPORTED, message, "response.conversation")
        metadata = object_at(wanted.get("metadata"), "response.metadata", optional=True)
        check_size(metadata, MAX_METADATA, "response.metadata")
        words = self._words(wanted)
        if self._response is not None:
            code = "conversation_already_has_active_response"
            raise EventError(code, f"The response {self._response.id} is active: wait until it is done.")
        if not self._is_started:
            if words:
                self._check(self._session, words)
            return self._start(words, self._ask(metadata))
        opening = self._ask(metadata)
        return self._say(words, opening, event_id) if words else AnsweredMessage(opening)

    def _words(self, wanted: Mapping[str, Any]) -> str | None:
        """What the agent shall say word by word: our own addition. `instructions` are no text to say."""
        own = object_at(wanted.get("personaplex"), "response.personaplex", optional=True)
        words = persona_at(own.get("say"), "response.personaplex.say")
        if words and not self.controls:
            message = "This client may not control its conversation."
            raise EventError(UNSUPPORTED, message, "response.personaplex.say")
        return words or None

    def _say(self, words: str, opening: tuple[Message, ...], event_id: str | None) -> OrderMessage:
        key = new_id("say")
        self._says[key] = event_id
        return OrderMessage(json.dumps({"type": "say", "text": words, "id": key}).encode(), opening)

    def _ask(self, metadata: Mapping[str, Any]) -> tuple[Message, ...]:
        """Open a response before the agent speaks."""
        self._utterances.ask()
        return tuple(self._open(metadata or None))

    def _open(self, metadata: Mapping[str, Any] | None = None) -> list[Message]:
        self._response = Response(self._items, metadata)
        return [*self._response.opening()]

    def _close(self, status: str = "completed", details: Mapping[str, Any] | None = None) -> list[Message]:
        """Close the open response, if there is one."""
        response, self._response = self._response, None
        return [*response.closing(self._utterances.is_empty, status, details)] if response else []

    def _cancel(self, given: Mapping[str, Any]) -> list[Message]:
        if self._response is None or given.get("response_id") not in (None, self._response.id):
            message = "Cancellation failed: this response is not active."  # LiveKit looks for these words
            raise EventError("response_cancel_not_active", message, "response_id")
        self._utterances.cancel()
        return self._close("cancelled", CANCELLED)

    # The start: event loop.

    def opened(self) -> list[Message]:
        return [event("session.created", session=self._resolved())]

    def overdue(self) -> StartMessage | None:
        if self._spoken_s is None:
            return None
        due_s = self._spoken_s + UNTOLD_S
        if self._session.is_instructed:
            due_s = min(due_s, max(self._spoken_s, self._set_s + SETTLED_S))
        return self._start() if self._clock() >= due_s else None

    def _start(self, greeting: str | None = None, answers: tuple[Message, ...] = ()) -> StartMessage:
        session, self._is_started = self._session, True
        self.audio = (
            session.hears.label if session.hears == session.says else f"{session.hears.label}/{session.says.label}"
        )
        return StartMessage(self._request(session, greeting), answers)

    # To the client: event loop.

    def handshake(self) -> None:
        return None

    def metadata(self, content: Mapping[str, Any]) -> list[Message]:
        if content["type"] == "heard":
            return [*transcript_events(self._items, content["words"])]
        if content["type"] not in ("done", "refused") or content["id"] not in self._says:
            return []
        event_id = self._says.pop(content["id"])
        if content["type"] == "done":
            return []
        error = EventError(INVALID, content["reason"], "response.personaplex.say")
        return [*self._close("failed", {"type": "failed", "error": error.to_dict()}), _error(error, event_id)]

    @property
    def takes_words(self) -> bool:
        return self._session.input_settings["transcription"] is not None

    def farewell(self, why: CloseReason) -> tuple[list[Message], Close]:
        if why.code is None:
            return [], Close.INTERNAL
        if why.cause == "shutdown":
            return self._close("incomplete"), Close.GOING_AWAY
        if why.code in (Close.UNSUPPORTED, Close.NOT_READING):
            return [], Close.POLICY if why.code is Close.NOT_READING else why.code
        error = EventError("session_expired", why.reason) if why.cause in ("idle", "duration") else fault_of(why)
        return [*self._close("incomplete"), _error(error)], why.code

    def ping(self) -> None:
        return None

    def samples_in(self, payload: bytes) -> float:
        return self._session.hears.samples(len(payload))

    # Hearing thread.

    bad_audio = 0  # it is refused instead

    def prepare(self) -> None:
        _ = self._receiver, self._sender

    def decode(self, payload: bytes, limit: int) -> Received:
        received = self._receiver.push(payload, limit)
        if self._user is not None:
            self._user.hear(received.pcm)
        return received

    @cached_property
    def _receiver(self) -> SoundReceiver:
        return SoundReceiver(self._session.hears)

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> Callable[[], list[Message]]:
        is_voiced = self._gate.is_open(pcm) or bool(text)
        audio = base64.b64encode(self._sender.frame(pcm)).decode()
        return partial(self._frame, audio, text, is_voiced)

    @cached_property
    def _sender(self) -> SoundSender:
        return SoundSender(self._session.says)

    # Event loop: a client may cancel what was encoded already.

    def _frame(self, audio: str, text: str, is_voiced: bool) -> list[Message]:
        """The events of a frame: none outside of responses."""
        events: list[Message] = [*self._user.step()] if self._user and self._detects_turns else []
        cut = self._utterances.take(is_voiced)
        if cut.begins:
            events += self._open()
        if cut.belongs and self._response is not None:
            events += self._response.frame(audio, text)
        return [*events, *self._close()] if cut.ends else events

    @property
    def _detects_turns(self) -> bool:
        return self._session.input_settings["turn_detection"] is not None


def _error(error: EventError, client_event_id: str | None = None) -> str:
    return event("error", error={**error.to_dict(), "event_id": client_event_id})


ANSWERS: Mapping[str, Callable[[RealtimeProtocol, Mapping[str, Any]], list[Message]]] = {
    "session.update": RealtimeProtocol._update,
    "input_audio_buffer.commit": lambda protocol, given: [*protocol._items.commit(given)],
    "input_audio_buffer.clear": lambda protocol, given: [event("input_audio_buffer.cleared")],
    "response.cancel": RealtimeProtocol._cancel,
    "conversation.item.create": RealtimeProtocol._add_item,
    "conversation.item.delete": lambda protocol, given: [*protocol._items.delete(given)],
    "conversation.item.truncate": lambda protocol, given: [*protocol._items.truncate(given)],
    "conversation.item.retrieve": lambda protocol, given: [*protocol._items.retrieve(given)],
}
