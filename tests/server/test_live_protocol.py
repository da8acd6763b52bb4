"""GPT-Live without a socket: every row of its tables, and fuzz."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from callers import speech
from hypothesis import given, settings
from hypothesis import strategies as st
from live_caller import pcm16

from pplex.server.live_protocol import EVENTS, UNSUPPORTED_EVENTS, LiveProtocol, LiveTerms
from pplex.server.live_session import MAX_DELEGATION
from pplex.server.openai_settings import MAX_INSTRUCTIONS, VOICES
from pplex.server.sounds import SOUNDS
from pplex.server.wire import (
    AnsweredMessage,
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    ClosingMessage,
    NoEffectMessage,
    OrderMessage,
    ProtocolError,
    StartMessage,
)

TERMS = LiveTerms(voices=("NATF0", "NATM1"), seed=7)
FACTS = {"type": "session", "id": "abc", "voice": "NATF0", "seed": 7}


def send(protocol: LiveProtocol, kind: str, **fields: Any) -> ClientMessage:
    return protocol.parse(json.dumps({"type": kind, **fields}))


def answers(protocol: LiveProtocol, kind: str, **fields: Any) -> list[dict[str, Any]]:
    message = send(protocol, kind, **fields)
    assert isinstance(message, AnsweredMessage), message
    return [json.loads(answer) for answer in message.answers]


def error(protocol: LiveProtocol, kind: str, **fields: Any) -> tuple[str, str | None]:
    """Code and param of the error that answers an event."""
    (answer,) = answers(protocol, kind, **fields)
    assert answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
    assert {"type", "code", "message", "param", "client_event_id"} == set(answer["error"])
    assert answer["error"]["message"].endswith(".")
    return answer["error"]["code"], answer["error"]["param"]


def asked(terms: LiveTerms = TERMS, **session: Any) -> tuple[LiveProtocol, StartMessage]:
    protocol = LiveProtocol(terms)
    message = send(protocol, "session.start", session={"model": "gpt-live-1", **session}, event_id="first")
    assert isinstance(message, StartMessage)
    return protocol, message


def begun(terms: LiveTerms = TERMS, **session: Any) -> tuple[LiveProtocol, list[dict[str, Any]]]:
    """A running session, and the events with which it began."""
    protocol, _ = asked(terms, **session)
    assert protocol.handshake() is None
    return protocol, [json.loads(message) for message in protocol.metadata(FACTS)]


def refusal(**session: Any) -> tuple[str, str | None]:
    """Code and param of the error that ends the connection."""
    protocol = LiveProtocol(TERMS)
    with pytest.raises(ProtocolError) as refused:
        send(protocol, "session.start", event_id="first", session={"model": "gpt-live-1", **session})
    messages, code = protocol.farewell(CloseReason(refused.value.code, str(refused.value), "protocol"))
    assert code == 1008
    (event,) = map(json.loads, messages)
    assert event["type"] == "error", "a session.closed would make LiveKit reconnect at once, without an end"
    assert event["client_event_id"] == "first"
    return event["error"]["code"], event["error"]["param"]


# The start.


def test_a_start_becomes_a_request() -> None:
    protocol, message = asked(instructions="You are kind.", audio={"output": {"voice": "NATM1.pt"}})
    request = message.request
    assert (request.voice, request.persona, request.seed) == ("NATM1", "You are kind.", 7)
    assert protocol.audio == "pcm-24k"


def test_the_session_comes_back_resolved() -> None:
    _, (event,) = begun(instructions="You are kind.")
    session = event["session"]
    assert (event["type"], event["client_event_id"]) == ("session.started", "first")
    assert session["audio"] == {"format": {"type": "audio/pcm", "rate": 24000}, "output": {"voice": "marin"}}
    assert (session["model"], session["instructions"], session["status"]) == ("gpt-live-1", "You are kind.", "active")
    assert isinstance(session["expires_at"], int) and session["id"].startswith("sess_")
    assert session["personaplex"] == {"voice": "NATF0", "seed": 7}


# As LiveKit 1.8.9 and Pipecat 1.14.0 send them.
LIVEKIT = {
    "instructions": "Be brief.",
    "audio": {"format": {"type": "audio/pcm", "rate": 24000}, "output": {"voice": "marin"}},
    "delegation": {"type": "responses", "responses": {"model": "gpt-5.6-luna", "tools": [{"type": "function"}]}},
}
PIPECAT = {"instructions": None, "delegation": {"type": "client"}}


@pytest.mark.parametrize("session", [LIVEKIT, PIPECAT, {"delegation": None, "store": False, "triggers": []}])
def test_what_clients_send_unasked_is_taken_and_a_delegation_comes_back(session: dict[str, Any]) -> None:
    _, events = begun(**session)
    assert [event["type"] for event in events] == ["session.started"]
    assert events[0]["session"]["delegation"] == session["delegation"]


@pytest.mark.parametrize("voice", [*VOICES, "NATM1", "NATM1.pt", {"id": "NATM1"}, {"id": "marin"}, None])
def test_every_voice_of_openai_works(voice: Any) -> None:
    _, message = asked(audio={"output": {"voice": voice}})
    assert message.request.voice in TERMS.voices
    if voice in ("ballad", "NATM1", "NATM1.pt", {"id": "NATM1"}):
        assert message.request.voice == "NATM1"


def test_a_model_without_a_prompt_takes_any_voice_and_tells_that_the_persona_has_no_effect() -> None:
    terms = LiveTerms(takes_prompt=False)
    _, message = asked(terms, instructions="You are kind.", audio={"output": {"voice": "NATM9"}})
    assert (message.request.voice, message.request.persona) == (None, "")
    _, events = begun(terms, instructions="You are kind.")
    assert [event["type"] for event in events] == ["session.started", "info"]
    assert "session.instructions" in events[1]["message"]


def test_fields_without_effect_are_taken_and_told_once() -> None:
    history = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
    _, events = begun(input=history, temperature=1, audio={"output": {"speed": 2}, "input": {}})
    assert [event["type"] for event in events] == ["session.started", "info"]
    for name in ("session.input", "session.temperature", "session.audio.output.speed", "session.audio.input"):
        assert name in events[1]["message"]


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"model": ""}, "invalid_value", "session.model"),
        ({"model": None}, "invalid_value", "session.model"),
        ({"model": 3}, "invalid_value", "session.model"),
        ({"instructions": 1}, "invalid_value", "session.instructions"),
        ({"instructions": "\ud83d"}, "invalid_value", "session.instructions"),
        ({"instructions": "a" * (MAX_INSTRUCTIONS + 1)}, "string_above_max_length", "session.instructions"),
        ({"audio": []}, "invalid_value", "session.audio"),
        ({"audio": {"format": "pcm16"}}, "invalid_value", "session.audio.format"),
        ({"audio": {"format": {"type": "audio/opus"}}}, "invalid_value", "session.audio.format.type"),
        ({"audio": {"format": {"type": ["a"]}}}, "invalid_value", "session.audio.format.type"),
        ({"audio": {"format": {"type": "audio/pcm", "rate": 8000}}}, "invalid_value", "session.audio.format.rate"),
        ({"audio": {"format": {"type": "audio/pcmu", "rate": 24000}}}, "invalid_value", "session.audio.format.rate"),
        ({"audio": {"format": {"type": "audio/pcm", "rate": True}}}, "invalid_value", "session.audio.format.rate"),
        ({"audio": {"output": 1}}, "invalid_value", "session.audio.output"),
        ({"audio": {"output": {"voice": "bob"}}}, "invalid_value", "session.audio.output.voice"),
        ({"audio": {"output": {"voice": 1}}}, "invalid_value", "session.audio.output.voice"),
        ({"audio": {"output": {"voice": {}}}}, "invalid_value", "session.audio.output.voice.id"),
        ({"audio": {"output": {"voice": "/etc/passwd"}}}, "invalid_value", "session.audio.output.voice"),
        ({"store": True}, "unsupported_parameter", "session.store"),
        ({"store": 1}, "invalid_value", "session.store"),
        ({"triggers": [{}]}, "unsupported_parameter", "session.triggers"),
        ({"safety_identifier": 1}, "invalid_value", "session.safety_identifier"),
        ({"delegation": {"type": "decisions"}}, "unsupported_parameter", "session.delegation"),
        ({"delegation": {"type": "other"}}, "invalid_value", "session.delegation.type"),
        ({"delegation": "client"}, "invalid_value", "session.delegation"),
        (
            {"delegation": {"type": "client", "x": "a" * MAX_DELEGATION}},
            "string_above_max_length",
            "session.delegation",
        ),
        ({"input": [{}] * 129}, "invalid_value", "session.input"),
        ({"input": [{"role": "system", "content": []}]}, "invalid_value", "session.input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "image"}]}]}, "invalid_value", "session.input[0].content"),
    ],
)
def test_a_wrong_configuration_is_refused_by_its_path(session: dict[str, Any], code: str, param: str) -> None:
    assert refusal(**session) == (code, param)


def test_a_number_that_json_does_not_have_is_refused_where_it_would_be_sent_back() -> None:
    protocol = LiveProtocol(TERMS)
    start = '{"type":"session.start","session":{"model":"m","delegation":{"type":"client","x":%s}}}'
    message = protocol.parse(start % "NaN")
    assert isinstance(message, AnsweredMessage) and "invalid_json" in str(message.answers)
    with pytest.raises(ProtocolError, match="finite"):
        protocol.parse(start % "1e999")


# Events at the wrong time, and wrong events.


def test_before_the_start_commands_are_refused_and_audio_is_dropped_and_reported_once() -> None:
    protocol = LiveProtocol(TERMS)
    assert error(protocol, "session.input_audio.append", audio="AAAA") == ("session_not_started", "type")
    assert isinstance(send(protocol, "session.input_audio.append", audio="AAAA"), NoEffectMessage)
    for kind in EVENTS:
        if kind not in ("session.start", "session.input_audio.append", "session.close"):
            assert error(protocol, kind)[0] == "session_not_started", kind
    assert isinstance(send(protocol, "session.start", session={"model": "m"}), StartMessage), "nothing was lost by it"


def test_between_start_and_started_audio_is_taken_and_commands_are_refused() -> None:
    protocol, _ = asked()
    assert isinstance(send(protocol, "session.input_audio.append", audio="AAAA"), AudioMessage)
    assert error(protocol, "session.input_audio.mute")[0] == "session_not_started"


def test_a_second_start_is_refused_and_changes_nothing() -> None:
    for protocol in (asked()[0], begun()[0]):
        code = error(protocol, "session.start", session={"model": "", "audio": {"format": {"type": "audio/pcmu"}}})[0]
        assert code == "session_already_started"
        assert protocol.audio == "pcm-24k"


def test_a_close_is_answered_in_every_state() -> None:
    asked_for = CloseReason(Close.NORMAL, "", "client")
    for protocol in (LiveProtocol(TERMS), asked()[0], begun()[0]):
        assert isinstance(send(protocol, "session.close"), ClosingMessage)
        (closed,), code = protocol.farewell(asked_for)
        assert (json.loads(closed)["type"], json.loads(closed)["reason"]) == ("session.closed", "close_requested")
        assert code == 1000


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"session.start"', "{}", '{"type": 3}', "[" * 100_000])
def test_what_is_no_event_is_answered_with_an_error_and_the_session_goes_on(text: str) -> None:
    for protocol in (LiveProtocol(TERMS), begun()[0]):
        message = protocol.parse(text)
        assert isinstance(message, AnsweredMessage)
        (answer,) = map(json.loads, message.answers)
        assert answer["error"]["code"] in ("invalid_json", "invalid_event")


def test_unknown_and_unsupported_events() -> None:
    protocol, _ = begun()
    (answer,) = answers(protocol, "response.cancel", event_id="e7")
    assert (answer["error"]["code"], answer["error"]["client_event_id"]) == ("unknown_event", "e7")
    assert answer["client_event_id"] == "e7"
    assert all(known in answer["error"]["message"] for known in EVENTS)
    for kind in UNSUPPORTED_EVENTS:
        assert error(protocol, kind)[0] == "unsupported_event"
    for kind in ("response.create", "response.item.create"):
        assert error(protocol, kind)[0] == "invalid_value"
    assert error(protocol, "session.close", event_id=5) == ("invalid_value", "event_id")
    assert error(protocol, "session.close", event_id="x" * 513) == ("invalid_value", "event_id")


def test_a_binary_message_ends_the_connection() -> None:
    with pytest.raises(ProtocolError) as refused:
        LiveProtocol(TERMS).parse(b"{}")
    assert LiveProtocol(TERMS).farewell(CloseReason(refused.value.code, "", "protocol")) == ([], 1003)


# Audio.


@pytest.mark.parametrize("audio", [None, 3, "", "not base64", "AAA", "AAA=A", "äää", ["AAAA"], "A" * 7])
def test_wrong_audio_is_refused_and_the_session_goes_on(audio: Any) -> None:
    protocol, _ = begun()
    if audio == "":
        assert isinstance(send(protocol, "session.input_audio.append", audio=audio), NoEffectMessage)
    else:
        assert error(protocol, "session.input_audio.append", audio=audio) == ("invalid_audio", "audio")
    assert isinstance(send(protocol, "session.input_audio.append", audio="AAAA"), AudioMessage)


def test_a_container_is_named() -> None:
    protocol, _ = begun()
    wav = base64.b64encode(b"RIFF" + bytes(100)).decode()
    assert "WAV" in answers(protocol, "session.input_audio.append", audio=wav)[0]["error"]["message"]


FORMATS = [{"type": sound.name, "rate": sound.rate_hz} for sound in SOUNDS]
SILENCE = {"audio/pcm": 0, "audio/pcmu": 0xFF, "audio/pcma": 0xD5}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form['type']}-{form['rate']}")
def test_audio_passes_in_every_format_however_it_is_cut(form: dict[str, Any]) -> None:
    """The agent's own encoder makes the user's audio: what comes back is the same sound, a little later."""
    protocol, _ = begun(audio={"format": form})
    tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(6 * 1920) / 24_000)).astype(np.float32)
    events = [json.loads(protocol.encode(frame, "")[-1]) for frame in tone.reshape(-1, 1920)]
    codes = b"".join(base64.b64decode(event["delta"]) for event in events)
    width = 2 if form["type"] == "audio/pcm" else 1
    assert len(codes) == len(tone) * form["rate"] // 24_000 * width
    heard = []
    for start in range(0, len(codes), 333):
        audio = base64.b64encode(codes[start : start + 333]).decode()
        message = send(protocol, "session.input_audio.append", audio=audio)
        assert isinstance(message, AudioMessage)
        heard.append(protocol.decode(message.payload, 1 << 20).pcm)
    pcm = np.concatenate(heard)
    assert len(tone) - 6 <= len(pcm) <= len(tone)
    late = {24_000: 0, 16_000: 60, 8_000: 72}[form["rate"]]  # samples: twice the filter's delay
    assert np.abs(pcm[late + 500 :] - tone[500 : len(pcm) - late]).max() < 0.03


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form['type']}-{form['rate']}")
def test_a_muted_client_is_silent_and_goes_on_counting(form: dict[str, Any]) -> None:
    protocol, _ = begun(audio={"format": form})
    (muted,) = answers(protocol, "session.input_audio.mute", event_id="m")
    assert (muted["type"], muted["client_event_id"]) == ("session.input_audio.muted", "m")
    audio = base64.b64encode(b"\x12\x34" * 400).decode()
    message = send(protocol, "session.input_audio.append", audio=audio)
    assert message == AudioMessage(bytes([SILENCE[form["type"]]]) * 800)
    assert answers(protocol, "session.input_audio.unmute")[0]["type"] == "session.input_audio.unmuted"
    assert send(protocol, "session.input_audio.append", audio=audio) == AudioMessage(b"\x12\x34" * 400)


def test_at_24_khz_samples_are_those_of_the_model() -> None:
    protocol, _ = begun()
    pcm = speech(1)[0]
    (event,) = map(json.loads, protocol.encode(pcm, ""))
    assert base64.b64decode(event["delta"]) == pcm16(pcm)
    assert set(event) == {"type", "delta"}


def test_only_the_newest_samples_are_decoded() -> None:
    protocol, _ = begun(audio={"format": FORMATS[2]})
    received = protocol.decode(bytes(8_000), 2_400)
    assert (len(received.pcm), received.skipped, received.is_audio) == (2_400, 21_600, True)


def test_a_transcript_has_the_time_of_its_frame() -> None:
    protocol, _ = begun()
    silence = np.zeros(1920, np.float32)
    assert len(protocol.encode(silence, "")) == 1
    text, audio = map(json.loads, protocol.encode(silence, " hello"))
    assert (text["type"], text["delta"]) == ("session.output_transcript.delta", " hello")
    assert (text["start_ms"], text["end_ms"]) == (80, 160)
    assert audio["type"] == "session.output_audio.delta"


def test_usage_is_reported_every_15_seconds() -> None:
    protocol, _ = begun()
    silence = np.zeros(1920, np.float32)
    events = [json.loads(message) for _ in range(400) for message in protocol.encode(silence, "")]
    usage = [event["usage"]["seconds"] for event in events if event["type"] == "session.usage.updated"]
    assert usage == [15.04, 30.08]


# Appends and updates.

APPEND = {"content": "Reply now.", "delegation_id": None}


@pytest.mark.parametrize("part", ["instructions", "thinking", "commentary"])
def test_without_permission_an_append_is_acknowledged_and_its_uselessness_told_once(part: str) -> None:
    protocol, _ = begun()
    protocol.encode(np.zeros(1920, np.float32), "")
    kind = f"session.{part}.append"
    appended, info = answers(protocol, kind, **APPEND, event_id="a")
    assert (appended["type"], appended["client_event_id"]) == (f"{kind}ed", "a")
    assert (appended["start_ms"], appended["end_ms"]) == (80, 80)
    assert info["type"] == "info" and info["code"] and info["message"]
    assert [event["type"] for event in answers(protocol, kind, **APPEND)] == [f"{kind}ed"]


def ordered(protocol: LiveProtocol, part: str, content: str) -> Mapping[str, Any]:
    message = send(protocol, f"session.{part}.append", content=content, delegation_id=None, event_id=content[:50])
    assert isinstance(message, OrderMessage)
    return json.loads(message.payload)


def test_with_permission_a_commentary_is_said_and_instructions_are_facts() -> None:
    protocol, _ = begun(LiveTerms(voices=TERMS.voices, controls=True))
    say = ordered(protocol, "commentary", "Your table is ready.")
    assert {**say, "id": ""} == {"type": "say", "text": "Your table is ready.", "id": ""}
    (appended,) = map(json.loads, protocol.metadata({"type": "done", "id": say["id"], "frame": 12}))
    assert (appended["type"], appended["client_event_id"]) == (
        "session.commentary.appended",
        "Your table is ready.",
    )
    assert (appended["start_ms"], appended["end_ms"]) == (960, 960)
    assert protocol.metadata({"type": "said", "id": say["id"], "state": "done", "words": 4, "frame": 20}) == []

    first = ordered(protocol, "instructions", "The soup is off.")
    assert (first["type"], first["facts"]) == ("rebuild", "The soup is off.")
    second = ordered(protocol, "thinking", "He is in a hurry.")
    assert second["facts"] == "The soup is off.\nHe is in a hurry."
    (refused,) = map(json.loads, protocol.metadata({"type": "refused", "id": second["id"], "reason": "Too long."}))
    assert (refused["error"]["code"], refused["error"]["param"]) == ("invalid_value", "content")
    assert (refused["error"]["message"], refused["client_event_id"]) == ("Too long.", "He is in a hurry.")
    assert ordered(protocol, "instructions", "It is late.")["facts"] == "The soup is off.\nIt is late."


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"delegation_id": None}, ("invalid_value", "content")),
        ({"content": 1}, ("invalid_value", "content")),
        ({"content": "a" * 40_000}, ("string_above_max_length", "content")),
        ({"content": "a", "delegation_id": 1}, ("invalid_value", "delegation_id")),
    ],
)
@pytest.mark.parametrize("controls", [False, True])
def test_a_wrong_append_is_refused(fields: dict[str, Any], wrong: tuple[str, str], controls: bool) -> None:
    terms = LiveTerms(voices=TERMS.voices, controls=controls)
    assert error(begun(terms)[0], "session.thinking.append", **fields) == wrong


def test_half_a_surrogate_pair_is_refused_where_it_would_be_said() -> None:
    protocol, _ = begun(LiveTerms(voices=TERMS.voices, controls=True))
    assert error(protocol, "session.commentary.append", content="\ud800") == ("invalid_value", "content")


@pytest.mark.parametrize("part", ["commentary", "instructions"])
def test_an_append_that_is_too_large_for_an_order_is_refused_and_kept_by_nobody(part: str) -> None:
    """The conversation would refuse the order before it reads for whom."""
    protocol, _ = begun(LiveTerms(voices=TERMS.voices, controls=True))
    ordered(protocol, "instructions", "No soup.")
    for _ in range(20):
        wrong = error(protocol, f"session.{part}.append", content="\u4e2d" * 12_000)
        assert wrong == ("string_above_max_length", "content")
    assert ordered(protocol, "instructions", "It is late.")["facts"] == "No soup.\nIt is late."
    for _ in range(3):
        ordered(protocol, "thinking", "a" * 10_000)
    assert error(protocol, "session.thinking.append", content="a" * 10_000)[0] == "string_above_max_length"


def test_only_the_delegation_can_be_changed() -> None:
    protocol, _ = begun(**PIPECAT)
    (updated,) = answers(protocol, "session.update", session={"delegation": None, "triggers": []}, event_id="u")
    assert (updated["type"], updated["client_event_id"]) == ("session.updated", "u")
    assert updated["session"]["delegation"] is None and updated["session"]["personaplex"]["seed"] == 7
    wrong = error(protocol, "session.update", session={"instructions": "Other."})
    assert wrong == ("immutable_parameter", "session.instructions")
    assert error(protocol, "session.update", session={"audio": {}})[0] == "immutable_parameter"
    assert error(protocol, "session.update", session={"triggers": [1]})[0] == "unsupported_parameter"
    assert error(protocol, "session.update", session={"delegation": {"type": "decisions"}}) == (
        "unsupported_parameter",
        "session.delegation",
    )
    assert error(protocol, "session.update") == ("invalid_value", "session")


# Ends.


@pytest.mark.parametrize(
    ("cause", "code", "then"),
    [
        ("idle", Close.POLICY, ("expired", 1008)),
        ("duration", Close.POLICY, ("expired", 1008)),
        ("shutdown", Close.GOING_AWAY, ("remote_hangup", 1012)),
        ("queue", Close.TRY_LATER, ("server_busy", 1013)),
        ("full", Close.TRY_LATER, ("server_busy", 1013)),
        ("defect", Close.INTERNAL, ("server_error", 1011)),
        ("engine", Close.INTERNAL, ("server_error", 1011)),
        ("protocol", Close.POLICY, ("rate_limit_exceeded", 1008)),
        ("prompt", Close.POLICY, ("string_above_max_length", 1008)),
        ("slow", Close.NOT_READING, (None, 1008)),
        ("lost", None, (None, 1011)),
    ],
)
def test_each_end_has_its_event_and_its_code(cause: str, code: Close | None, then: tuple[str | None, int]) -> None:
    protocol, _ = begun()
    messages, closed_with = protocol.farewell(CloseReason(code, "A reason.", cause))
    events = [json.loads(message) for message in messages]
    assert ([event.get("reason") or event["error"]["code"] for event in events], closed_with) == (
        [then[0]] if then[0] else [],
        then[1],
    )
    if events and events[0]["type"] == "session.closed":
        assert events[0]["usage"] == {"seconds": 0.0} and events[0]["session"]["id"] == "sess_abc"


@pytest.mark.parametrize("cause", ["idle", "shutdown", "duration"])
def test_a_session_that_never_started_is_not_closed(cause: str) -> None:
    """LiveKit would reconnect at once, for ever."""
    for protocol in (LiveProtocol(TERMS), asked()[0]):
        messages, code = protocol.farewell(CloseReason(Close.GOING_AWAY, "", cause))
        assert (messages, code) == ([], 1012 if cause == "shutdown" else 1008)


# Anything.

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["AAAA", "client"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["session", "audio", "content", "delegation_id", "event_id", "model", "delegation", "format"])
FIELDS = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)
KINDS = st.sampled_from([*EVENTS, *UNSUPPORTED_EVENTS]) | st.text(max_size=20)


@settings(max_examples=200)
@given(st.booleans(), st.lists(st.tuples(KINDS, FIELDS) | st.text(max_size=40), max_size=6))
def test_no_message_breaks_it(is_begun: bool, events: list[Any]) -> None:
    protocol = begun()[0] if is_begun else LiveProtocol(TERMS)
    for event in events:
        text = event if isinstance(event, str) else json.dumps({**event[1], "type": event[0]})
        try:
            message = protocol.parse(text)
        except ProtocolError as refused:
            assert refused.code == 1008
            return
        if isinstance(message, AnsweredMessage):
            for answer in message.answers:
                assert json.loads(answer)["type"] and len(answer) < 1 << 20
        if isinstance(message, AudioMessage):
            protocol.decode(message.payload, 1920)
