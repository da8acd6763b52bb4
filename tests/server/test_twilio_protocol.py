"""Twilio Media Streams without a socket: every message of its protocol, lost audio, and fuzz."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from callers import FRAME, speech
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.server.g711 import MU_LAW
from pplex.server.resampling import Resampler
from pplex.server.twilio_protocol import MAX_GAP_MS, Timeline, TwilioProtocol
from pplex.server.twilio_start import TwilioTerms
from pplex.server.wire import (
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    ClosingMessage,
    IgnoredMessage,
    NoEffectMessage,
    ProtocolError,
    StartMessage,
)

VOICES = {"NATF0": None, "NATM1": None}
TERMS = TwilioTerms(VOICES)
SID = "MZ0123"
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
PACKET = 160  # bytes, 20 ms


def send(twilio: TwilioProtocol, kind: str, **fields: Any) -> ClientMessage:
    return twilio.parse(json.dumps({"event": kind, "sequenceNumber": "1", "streamSid": SID, **fields}))


def start(protocol: TwilioProtocol, given: Any = None, **other: Any) -> ClientMessage:
    """Begin with these parameters. `other` replaces fields of the start."""
    fields = {
        "accountSid": "AC1",
        "callSid": "CA1",
        "streamSid": SID,
        "tracks": ["inbound"],
        "mediaFormat": FORMAT,
        "customParameters": given if given is not None else {},
    }
    return send(protocol, "start", start={**fields, **other})


def begun(**parameters: str) -> TwilioProtocol:
    protocol = TwilioProtocol(TERMS)
    assert isinstance(send(protocol, "connected", protocol="Call", version="1.0.0"), NoEffectMessage)
    assert isinstance(start(protocol, parameters), StartMessage)
    return protocol


def media(protocol: TwilioProtocol, codes: bytes, timestamp: Any, **other: Any) -> ClientMessage:
    packet = {"track": "inbound", "chunk": "1", "timestamp": timestamp, "payload": base64.b64encode(codes).decode()}
    return send(protocol, "media", media={**packet, **other})


def heard(message: ClientMessage) -> bytes:
    assert isinstance(message, AudioMessage), message
    return message.payload


# The start.


def test_custom_parameters_become_a_request() -> None:
    given = {"voice": "NATM1", "persona": "You are kind.", "seed": "7", "audio_topk": "20", "text_temperature": "0.5"}
    message = start(TwilioProtocol(TERMS), given)
    assert isinstance(message, StartMessage)
    request = message.request
    assert (request.voice, request.persona, request.seed) == ("NATM1", "You are kind.", 7)
    assert (request.sampling.audio_top_k, request.sampling.text_temperature) == (20, 0.5)
    assert request.ignored == ()


def test_without_parameters_the_defaults_hold() -> None:
    for parameters in (None, {}):
        message = start(TwilioProtocol(TERMS), customParameters=parameters)
        assert isinstance(message, StartMessage)
        assert (message.request.voice, message.request.persona) == ("NATF0", "")


def test_a_long_persona_is_joined_in_the_order_of_its_numbers() -> None:
    parts = {f"persona_{number}": f"part {number} " for number in (10, 3, 2)}
    message = start(TwilioProtocol(TERMS), {**parts, "persona": "The first part"})
    assert isinstance(message, StartMessage)
    assert message.request.persona == "The first part part 2 part 3 part 10"


def test_unknown_parameters_are_ignored_and_named() -> None:
    """Those of /api/chat that mean nothing here, too: none of them resumes or controls a conversation."""
    given = {"caller": "+1555", "resume": "key", "control": "1", "greeting": "Hi", "audio": "f32", "persona_x": "a"}
    message = start(TwilioProtocol(TERMS), given)
    assert isinstance(message, StartMessage)
    assert set(message.request.ignored) == {f"customParameters.{name}" for name in given}
    assert (message.request.greeting, message.request.persona) == (None, "")


def test_a_model_without_a_prompt_takes_calls_too() -> None:
    message = start(TwilioProtocol(TwilioTerms({}, takes_prompt=False)), {"voice": "NATM1", "persona": "Kind."})
    assert isinstance(message, StartMessage)
    assert (message.request.voice, message.request.persona) == (None, "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"customParameters": {"voice": "bob"}}, "Unknown voice 'bob'"),
        ({"customParameters": {"seed": "x"}}, "seed is 'x'"),
        ({"customParameters": {"audio_topk": "0"}}, "audio_topk"),
        ({"customParameters": {"seed": 7}}, "'seed' must be text"),
        ({"customParameters": {"persona": "\ud83d"}}, "'persona' must be text"),
        ({"customParameters": []}, "customParameters must be an object"),
        ({"mediaFormat": {**FORMAT, "encoding": "audio/x-l16"}}, "audio/x-mulaw with 8000 Hz"),
        ({"mediaFormat": {**FORMAT, "sampleRate": 16000}}, "audio/x-mulaw with 8000 Hz"),
        ({"mediaFormat": {**FORMAT, "channels": 2}}, "audio/x-mulaw with 8000 Hz"),
        ({"mediaFormat": None}, "audio/x-mulaw with 8000 Hz"),
        ({"streamSid": ""}, "streamSid"),
        ({"streamSid": 3}, "streamSid"),
        ({"streamSid": "a" * 300}, "streamSid"),
    ],
)
def test_a_wrong_start_is_refused_with_1008(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        start(TwilioProtocol(TERMS), **given)
    assert refused.value.code == 1008 and words in str(refused.value)


@pytest.mark.parametrize("content", [None, [], "x"])
def test_a_start_without_content_is_refused(content: Any) -> None:
    with pytest.raises(ProtocolError, match="start must be an object"):
        send(TwilioProtocol(TERMS), "start", start=content)


def test_the_token_is_checked_before_anything_else() -> None:
    guarded = TwilioTerms(VOICES, is_token=lambda text: text == "secret")
    assert isinstance(start(TwilioProtocol(guarded), {"token": "secret"}), StartMessage)
    for parameters, words in (({}, "is missing"), ({"token": ""}, "is missing"), ({"token": "x"}, "is not a token")):
        with pytest.raises(ProtocolError, match=words) as refused:
            start(TwilioProtocol(guarded), {**parameters, "voice": "bob"}, mediaFormat={})
        assert refused.value.code == 1008


def test_a_second_start_changes_nothing() -> None:
    protocol = begun(seed="3")
    assert start(protocol, {"seed": "4"}, streamSid="MZother") == IgnoredMessage("second start")
    assert json.loads(str(protocol.encode(np.zeros(FRAME, np.float32), "")[0]))["streamSid"] == SID


# Messages.


def test_every_message_of_twilio() -> None:
    protocol = TwilioProtocol(TERMS)
    assert media(protocol, b"\xff" * PACKET, "0") == IgnoredMessage("media before start")
    start(protocol)
    assert media(protocol, b"\x12" * PACKET, "0") == AudioMessage(b"\x12" * PACKET)
    assert media(protocol, b"\xff" * PACKET, "20", track="outbound") == IgnoredMessage("media of another track")
    assert media(protocol, b"", "20") == NoEffectMessage()
    assert send(protocol, "dtmf", dtmf={"track": "inbound_track", "digit": "1"}) == NoEffectMessage()
    assert send(protocol, "mark", mark={"name": "a"}) == NoEffectMessage()
    assert send(protocol, "stop", stop={"accountSid": "AC1", "callSid": "CA1"}) == ClosingMessage()
    assert send(protocol, "error") == IgnoredMessage("unknown event")


@pytest.mark.parametrize("text", ["{", "[]", "null", "3", '{"event":3}', "{}", "[" * 50_000, '{"a":' * 5_000, "\ud83d"])
def test_what_is_no_event_is_ignored(text: str) -> None:
    assert begun().parse(text) == IgnoredMessage("not an event")


def test_a_binary_message_is_refused() -> None:
    with pytest.raises(ProtocolError) as refused:
        begun().parse(b"\xff" * PACKET)
    assert refused.value.code == Close.UNSUPPORTED


@pytest.mark.parametrize(
    "content", [None, [], {}, {"payload": 3}, {"payload": "%%%"}, {"payload": "AAA"}, {"payload": "é"}]
)
def test_damaged_media_are_ignored(content: Any) -> None:
    assert send(begun(), "media", media=content) == IgnoredMessage("damaged media")


def test_stop_before_a_start_is_the_end() -> None:
    assert send(TwilioProtocol(TERMS), "stop") == ClosingMessage()


# Lost audio.


def test_lost_packets_become_silence() -> None:
    protocol = begun()
    packets = [bytes([number]) * PACKET for number in range(8)]
    lost = {2, 5, 6}
    parts = [heard(media(protocol, packet, str(20 * n))) for n, packet in enumerate(packets) if n not in lost]
    silence = b"\xff" * PACKET
    assert b"".join(parts) == b"".join(silence if n in lost else packet for n, packet in enumerate(packets))


def test_a_damaged_packet_becomes_silence() -> None:
    protocol = begun()
    media(protocol, b"\1" * PACKET, "0")
    media(protocol, b"", "20", payload="%")
    assert heard(media(protocol, b"\2" * PACKET, "40")) == b"\xff" * PACKET + b"\2" * PACKET


@pytest.mark.parametrize(
    ("timestamps", "gaps"),
    [
        (["0", "20", "40"], [0, 0, 0]),
        (["3960", "3980", "4040"], [0, 0, 40]),  # begins anywhere
        (["0", "25", "41", "79", "80"], [0, 0, 0, 0, 0]),  # inaccurate
        (["0", "50"], [0, 30]),
        (["0", "5000", "5020"], [0, MAX_GAP_MS, 0]),
        (["100", "40", "60", "120", "200"], [0, 0, 0, 0, 60]),  # goes back: nothing is heard twice
        (["0", None, "40", "80"], [0, 0, 0, 20]),
        ([None, "500", "520"], [0, 0, 0]),
        (["0", "-9", "1e9", "9" * 5000, "x", "", 1.5, True], [0] * 8),
        ([0, 20, 60], [0, 0, 20]),
        ([0, 20, 10**15 - 1, 60, 80, 500], [0, 0, MAX_GAP_MS, 0, 0, 400]),  # one was wrong
        ([9000, 0, 20, 100], [0, 0, 0, 60]),
    ],
)
def test_gaps_of_timestamps(timestamps: list[Any], gaps: list[int]) -> None:
    protocol = begun()
    heard_bytes = [len(heard(media(protocol, b"\1" * PACKET, timestamp))) for timestamp in timestamps]
    assert heard_bytes == [PACKET + 8 * gap for gap in gaps]


@given(st.lists(st.tuples(st.none() | st.integers(0, 10**15), st.floats(0, 8000)), max_size=30))
def test_no_gap_is_longer_than_a_second(packets: list[tuple[int | None, float]]) -> None:
    timeline = Timeline()
    assert all(0 <= timeline.gap_ms(*packet) <= MAX_GAP_MS for packet in packets)


# Audio.


def test_the_caller_is_heard_as_spoken() -> None:
    said = speech(5).ravel()
    codes = MU_LAW.encode(Resampler(24_000, 8_000).process(said))
    protocol, expected = begun(), Resampler(8_000, 24_000).process(MU_LAW.decode(codes))
    parts = list[np.ndarray]()
    for n in range(len(codes) // PACKET):
        received = protocol.decode(heard(media(protocol, codes[PACKET * n :][:PACKET], str(20 * n))), 10 * FRAME)
        assert received.is_audio and received.skipped == 0
        parts.append(received.pcm)
    np.testing.assert_allclose(np.concatenate(parts), expected[: 5 * FRAME], atol=1e-6)


def test_the_agents_frames_are_media_and_nothing_else() -> None:
    """No text, no facts, no pings, no farewell: Twilio knows none of them."""
    protocol = begun()
    messages = [message for frame in speech(3) for message in protocol.encode(frame, " word")]
    events = [json.loads(str(message)) for message in messages]
    assert len(events) == 3
    for event in events:
        assert set(event) == {"event", "streamSid", "media"} and set(event["media"]) == {"payload"}
        assert (event["event"], event["streamSid"]) == ("media", SID)
    codes = b"".join(base64.b64decode(event["media"]["payload"], validate=True) for event in events)
    assert codes == MU_LAW.encode(Resampler(24_000, 8_000).process(speech(3).ravel()))
    assert len(codes) == 3 * 640
    assert protocol.handshake() is None and protocol.ping() is None
    assert protocol.metadata({"type": "session"}) == protocol.metadata({"type": "dropped", "frames": 1}) == []


def test_a_strange_stream_name_stays_one_value() -> None:
    protocol = TwilioProtocol(TERMS)
    start(protocol, streamSid='a"}\\\n\ud83d')
    (message,) = protocol.encode(np.zeros(FRAME, np.float32), "")
    assert json.loads(str(message))["streamSid"] == 'a"}\\\n\ud83d' and str(message).isascii()


# Ends.


@pytest.mark.parametrize(
    ("cause", "code", "closed"),
    [
        ("client", Close.NORMAL, 1000),
        ("idle", Close.POLICY, 1008),
        ("duration", Close.POLICY, 1008),
        ("protocol", Close.POLICY, 1008),
        ("prompt", Close.POLICY, 1008),
        ("queue", Close.TRY_LATER, 1013),
        ("full", Close.TRY_LATER, 1013),
        ("shutdown", Close.GOING_AWAY, 1001),
        ("defect", Close.INTERNAL, 1011),
        ("slow", Close.NOT_READING, 1008),
        ("lost", None, 1011),
    ],
)
def test_each_end_has_a_code_and_no_message(cause: str, code: Close | None, closed: int) -> None:
    assert begun().farewell(CloseReason(code, "A reason.", cause)) == ([], closed)


# Anything.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["AAAA", "20"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["start", "media", "streamSid", "mediaFormat", "customParameters", "payload", "timestamp", "track", "persona"]
FIELDS = st.dictionaries(
    st.sampled_from(NAMES), VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), max_size=4
)
KINDS = st.sampled_from(["connected", "start", "media", "dtmf", "mark", "stop"]) | st.text(max_size=20)


@settings(max_examples=200)
@given(st.booleans(), st.lists(st.tuples(KINDS, FIELDS) | st.text(max_size=40), max_size=6))
def test_no_message_breaks_it(is_begun: bool, events: list[Any]) -> None:
    protocol = begun() if is_begun else TwilioProtocol(TERMS)
    for event in events:
        text = event if isinstance(event, str) else json.dumps({**event[1], "event": event[0]})
        try:
            message = protocol.parse(text)
        except ProtocolError as refused:
            assert refused.code == 1008 and not is_begun
            return
        if isinstance(message, AudioMessage):
            protocol.decode(message.payload, FRAME)
