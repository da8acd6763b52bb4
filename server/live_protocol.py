"""GPT-Live on one connection: OpenAI's protocol of `/v1/live/sessions`, from JSON to audio, text and control. No I/O.

Called by `server.live_routes` and by connections. docs/apis.md says what works.
"""

import base64
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pplex.runtime.arrays import Pcm
from pplex.runtime.sampling import Sampling
from pplex.server.limits import MAX_JSON_MESSAGE, Limits
from pplex.server.live_session import LiveSession, changed, parse_session
from pplex.server.openai_events import (
    INVALID,
    TOO_LONG,
    EventError,
    audio_of,
    decoded,
    event,
    fault_of,
    id_of,
    shown,
)
from pplex.server.request import ConversationRequest
from pplex.server.sounds import SOUNDS, SoundReceiver, SoundSender
from pplex.server.wire import (
    FRAME_S,
    AnsweredMessage,
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    ClosingMessage,
    Message,
    NoEffectMessage,
    OrderMessage,
    ProtocolError,
    Received,
    StartMessage,
    WireProtocol,
)

MAX_CONTENT = 32_768  # characters
MAX_ORDER = Limits.order_bytes
FRAME_MS = round(FRAME_S * 1000)
USAGE_FRAMES = 188  # 15 s
APPENDS = ("session.instructions.append", "session.thinking.append", "session.commentary.append")
RESPONSES = ("response.item.create", "response.create")
UNSUPPORTED_EVENTS = (
    "session.output_audio.fixture.play",
    "decision.create",
    "decision.item.create",
    "decision.item.delete",
)
EVENTS = (
    "session.start",
    "session.input_audio.append",
    "session.input_audio.mute",
    "session.input_audio.unmute",
    *APPENDS,
    "session.update",
    "session.close",
    *RESPONSES,
)


@dataclass(frozen=True)
class LiveTerms:
    """What the server offers a client, and what the client's address asked for.

    takes_prompt: whether the model has voices and personas. controls: whether the client may control its conversation.
    """

    voices: tuple[str, ...] = ()
    takes_prompt: bool = True
    controls: bool = False
    duration_s: float = 3600.0
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class _Append:
    """An append that was passed on as an order."""

    kind: str
    event_id: str | None
    content: str


class LiveProtocol(WireProtocol):
    """See `WireProtocol`. A client's first message is `session.start`; an open socket is not yet a conversation."""

    name = "live"
    max_message = MAX_JSON_MESSAGE
    can_resume, has_pauses, early_metadata = False, True, False
    takes_words = True
    hears_after_s = 0.0

    def __init__(self, terms: LiveTerms):
        self._terms, self.controls = terms, terms.controls
        self._sound, self.audio = SOUNDS[0], SOUNDS[0].label
        self._session: LiveSession | None = None  # from session.start on
        self._running: dict[str, Any] | None = None  # facts that only a running session has
        self._start_id: str | None = None
        self._is_muted = False
        self._noted = set[str]()  # what the client was informed of, once
        self._appends = dict[str, _Append]()  # by order's id, without an answer
        self._facts = list[str]()  # appended instructions and thoughts
        self._refused: Message | None = None  # the error that ends the connection
        self._frames = 0  # sent

    # From the client: event loop.

    def parse(self, message: Message) -> ClientMessage:
        if isinstance(message, bytes):
            raise ProtocolError(Close.UNSUPPORTED, "This protocol has text messages only.")
        event_id = None
        try:
            event = decoded(message)
            event_id = id_of(event)
            return self._take(event["type"], event, event_id)
        except EventError as error:
            return AnsweredMessage((_error(error, event_id),))

    def _take(self, kind: str, event: Mapping[str, Any], event_id: str | None) -> ClientMessage:
        if kind == "session.input_audio.append":
            return self._audio(event)
        if kind == "session.start":
            return self._start(event, event_id)
        if kind == "session.close":
            return ClosingMessage()
        if kind in UNSUPPORTED_EVENTS:
            raise EventError("unsupported_event", f"This server does not support {kind}.", "type")
        if kind not in EVENTS:
            raise EventError("unknown_event", f"Unknown type {shown(kind)}. Known are {', '.join(EVENTS)}.", "type")
        self._check_running()
        if kind in APPENDS:
            return self._append(kind, event, event_id)
        if kind == "session.update":
            return self._update(event, event_id)
        if kind in RESPONSES:
            raise EventError(INVALID, f"{kind} requires Responses delegation, and this server never delegates.", "type")
        self._is_muted = kind == "session.input_audio.mute"
        return AnsweredMessage((_event(f"{kind}d", event_id),))

    def _check_running(self) -> None:
        if self._running is None:
            raise EventError("session_not_started", "The session has not started: wait for session.started.", "type")

    def _start(self, event: Mapping[str, Any], event_id: str | None) -> ClientMessage:
        if self._session is not None:
            raise EventError("session_already_started", "The session has started already.", "type")
        try:
            session = parse_session(event.get("session"), self._terms.voices, self._terms.takes_prompt)
        except EventError as error:
            self._refused = _error(error, event_id)
            raise ProtocolError(Close.POLICY, error.message) from error
        self._session, self._sound, self._start_id = session, session.sound, event_id
        self.audio = session.sound.label
        return StartMessage(
            ConversationRequest(
                voice=session.voice,
                persona=session.instructions,
                seed=self._terms.seed,
                sampling=self._terms.sampling,
            )
        )

    def _audio(self, event: Mapping[str, Any]) -> ClientMessage:
        if self._session is None:
            if self._is_first("early audio"):
                raise EventError("session_not_started", "Audio before session.start is dropped.", "type")
            return NoEffectMessage()
        payload = audio_of(event)
        if not payload:
            return NoEffectMessage()
        return AudioMessage(self._sound.silence(len(payload)) if self._is_muted else payload)

    def _append(self, kind: str, event: Mapping[str, Any], event_id: str | None) -> ClientMessage:
        content, delegation = event.get("content"), event.get("delegation_id")
        if type(content) is not str:
            raise EventError(INVALID, "content must be a string.", "content")
        if len(content) > MAX_CONTENT:
            raise EventError(TOO_LONG, f"content may have {MAX_CONTENT:,} characters.", "content")
        if delegation is not None and type(delegation) is not str:
            raise EventError(INVALID, "delegation_id must be a string or null.", "delegation_id")
        if not self.controls:
            info = self._info_once(
                "append_without_effect",
                "This client may not control its conversation: what it appends has no effect.",
            )
            return AnsweredMessage((_appended(kind, event_id, self._frames), *info))
        key, is_said = secrets.token_hex(8), kind == "session.commentary.append"
        order = {"type": "say", "text": content} if is_said else {"type": "rebuild", "facts": self._with(content)}
        try:
            payload = json.dumps({**order, "id": key}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise EventError(INVALID, "content must be text without half a surrogate pair.", "content") from error
        if len(payload) > MAX_ORDER:  # the conversation would refuse it without its id
            reason = f"content may have about {MAX_ORDER:,} bytes, with all that was appended before."
            raise EventError(TOO_LONG, reason, "content")
        self._appends[key] = _Append(kind, event_id, content)
        if not is_said:
            self._facts.append(content)
        return OrderMessage(payload)

    def _with(self, fact: str) -> str:
        return "\n".join([*self._facts, fact])

    def _update(self, event: Mapping[str, Any], event_id: str | None) -> ClientMessage:
        assert self._session is not None
        self._session = changed(self._session, event.get("session"))
        return AnsweredMessage((_event("session.updated", event_id, session=self._resolved()),))

    # To the client: event loop.

    def handshake(self) -> None:
        return None

    def metadata(self, content: Mapping[str, Any]) -> list[Message]:
        kind = content["type"]
        if kind == "session":
            return self._started(content)
        if kind == "heard":
            return [_words("input", *words) for words in content["words"]]
        if kind not in ("done", "refused"):
            return []
        append = self._appends.pop(content["id"], None)
        if append is None:
            return []
        if kind == "done":
            return [_appended(append.kind, append.event_id, content["frame"])]
        if append.content in self._facts:
            self._facts.remove(append.content)
        return [_error(EventError(INVALID, content["reason"], "content"), append.event_id)]

    def _started(self, facts: Mapping[str, Any]) -> list[Message]:
        assert self._session is not None
        self._running = {
            "id": f"sess_{facts['id']}",
            "object": "live.session",
            "status": "active",
            "expires_at": round(time.time() + self._terms.duration_s),
            "personaplex": {"voice": facts["voice"], "seed": facts["seed"]},
        }
        infos = list[Message]()
        if unused := self._session.unused:
            infos = self._info_once("field_without_effect", f"Without effect here: {', '.join(unused)[:2000]}.")
        return [_event("session.started", self._start_id, session=self._resolved()), *infos]

    def _resolved(self) -> dict[str, Any]:
        assert self._session is not None
        return {**self._session.to_dict(), **(self._running or {})}

    def farewell(self, why: CloseReason) -> tuple[list[Message], Close]:
        """`session.closed` only ends a session that has started.

        As the answer to a start, it makes LiveKit reconnect at once, without an end.
        """
        if why.code is None:
            return [], Close.INTERNAL
        ends = {
            "client": ("close_requested", Close.NORMAL),
            "idle": ("expired", Close.POLICY),
            "duration": ("expired", Close.POLICY),
            "shutdown": ("remote_hangup", Close.RESTARTING),
        }
        if why.cause in ends:
            reason, code = ends[why.cause]
            tells = self._running is not None or why.cause == "client"
            return [self._closed(reason)] if tells else [], code
        if why.code in (Close.UNSUPPORTED, Close.NOT_READING):
            return [], Close.POLICY if why.code is Close.NOT_READING else why.code
        return [self._refused or _error(fault_of(why))], why.code

    def _closed(self, reason: str) -> Message:
        session = self._resolved() if self._session is not None else None
        usage = {"seconds": self._seconds}
        return _event("session.closed", None, reason=reason, session=session, usage=usage)

    def ping(self) -> None:
        return None

    def _info_once(self, code: str, message: str) -> list[Message]:
        return [_event("info", None, code=code, message=message)] if self._is_first(code) else []

    def _is_first(self, what: str) -> bool:
        """Whether this is asked for the first time."""
        is_first = what not in self._noted
        self._noted.add(what)
        return is_first

    def samples_in(self, payload: bytes) -> float:
        return self._sound.samples(len(payload))

    # Hearing thread.

    bad_audio = 0  # it is refused instead

    def prepare(self) -> None:
        _ = self._receiver, self._sender

    def decode(self, payload: bytes, limit: int) -> Received:
        return self._receiver.push(payload, limit)

    @cached_property
    def _receiver(self) -> SoundReceiver:
        return SoundReceiver(self._sound)

    # Speech thread.

    def encode(self, pcm: Pcm, text: str) -> list[Message]:
        start_ms = self._frames * FRAME_MS
        self._frames += 1
        messages = list[Message]()
        if text:
            messages.append(_words("output", text, start_ms, start_ms + FRAME_MS))
        if self._frames % USAGE_FRAMES == 0:
            messages.append(_event("session.usage.updated", None, usage={"seconds": self._seconds}))
        audio = base64.b64encode(self._sender.frame(pcm)).decode()
        return [*messages, f'{{"type":"session.output_audio.delta","delta":"{audio}"}}']

    @cached_property
    def _sender(self) -> SoundSender:
        return SoundSender(self._sound)

    @property
    def _seconds(self) -> float:
        return round(self._frames * FRAME_S, 2)


def _event(kind: str, client_event_id: str | None, **fields: Any) -> str:
    """A server's event. `client_event_id`: of the command that caused it."""
    cause = {} if client_event_id is None else {"client_event_id": client_event_id}
    return event(kind, **cause, **fields)


def _words(side: str, text: str, start_ms: int, end_ms: int) -> str:
    """Words of the user ("input") or of the agent ("output"), and when they were said."""
    return _event(f"session.{side}_transcript.delta", None, delta=text, start_ms=start_ms, end_ms=end_ms)


def _appended(kind: str, client_event_id: str | None, frame: int) -> str:
    at_ms = frame * FRAME_MS
    return _event(f"{kind}ed", client_event_id, start_ms=at_ms, end_ms=at_ms)


def _error(error: EventError, client_event_id: str | None = None) -> str:
    return _event("error", client_event_id, error={**error.to_dict(), "client_event_id": client_event_id})
