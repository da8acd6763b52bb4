"""The Realtime API without a socket: every row of its tables, the order of events, and fuzz."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from callers import speech
from hypothesis import given, settings
from hypothesis import strategies as st
from live_caller import pcm16

from pplex.runtime.errors import PplexError
from pplex.server.openai_settings import MAX_INSTRUCTIONS, VOICES
from pplex.server.realtime_items import MAX_ITEM, MAX_ITEMS
from pplex.server.realtime_protocol import ANSWERS, MAX_CHECKS, SETTLED_S, UNTOLD_S, RealtimeProtocol, RealtimeTerms
from pplex.server.realtime_session import MAX_ECHO
from pplex.server.request import ConversationRequest
from pplex.server.utterances import PATIENCE_FRAMES, PAUSE_FRAMES
from pplex.server.wire import (
    AnsweredMessage,
    AudioMessage,
    ClientMessage,
    Close,
    CloseReason,
    NoEffectMessage,
    OrderMessage,
    ProtocolError,
    StartMessage,
)

TERMS = RealtimeTerms(voices=("NATF0", "NATM1"), model="gpt-realtime", seed=7)
CONTROLS = RealtimeTerms(voices=TERMS.voices, controls=True)
SILENCE = np.zeros(1920, np.float32)
VOICE = np.full(1920, 0.1, np.float32)
AUDIO = base64.b64encode(bytes(960)).decode()
OPENING = ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"]
CLOSING = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
DELTA, WORD = "response.output_audio.delta", "response.output_audio_transcript.delta"


class Clock:
    """Seconds that pass only if a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def send(protocol: RealtimeProtocol, kind: str, **fields: Any) -> ClientMessage:
    return protocol.parse(json.dumps({"type": kind, **fields}))


def answers(protocol: RealtimeProtocol, kind: str, **fields: Any) -> list[dict[str, Any]]:
    message = send(protocol, kind, **fields)
    assert isinstance(message, AnsweredMessage | StartMessage), message
    events = [json.loads(answer) for answer in message.answers]
    assert all(event["event_id"] for event in events), "Pipecat and openai-agents need it"
    return events


def error(protocol: RealtimeProtocol, kind: str, **fields: Any) -> tuple[str, str | None]:
    """Code and param of the error that answers an event."""
    (answer,) = answers(protocol, kind, event_id="e7", **fields)
    assert answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
    assert {"type", "code", "message", "param", "event_id"} == set(answer["error"])
    assert answer["error"]["message"].endswith(".") and answer["error"]["event_id"] == "e7"
    return answer["error"]["code"], answer["error"]["param"]


def updated(protocol: RealtimeProtocol, **session: Any) -> dict[str, Any]:
    """The session after an update."""
    (answer,) = answers(protocol, "session.update", session={"type": "realtime", **session})
    assert answer["type"] == "session.updated", answer
    return answer["session"]


def begun(terms: RealtimeTerms = TERMS, **session: Any) -> RealtimeProtocol:
    """A conversation that audio has started, without a response."""
    clock = Clock()
    protocol = RealtimeProtocol(terms, clock)
    updated(protocol, **session)
    send(protocol, "input_audio_buffer.append", audio=AUDIO)
    clock.now += UNTOLD_S
    assert isinstance(protocol.overdue(), StartMessage)
    assert protocol.handshake() is None
    assert protocol.metadata({"type": "session", "id": "abc", "voice": "NATF0", "seed": 7}) == []
    return protocol


def frame(protocol: RealtimeProtocol, pcm: np.ndarray = SILENCE, text: str = "") -> list[dict[str, Any]]:
    events = [json.loads(message) for message in protocol.encode(pcm, text)()]
    assert all(event["event_id"] for event in events)
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def said(protocol: RealtimeProtocol, *texts: str) -> list[dict[str, Any]]:
    """The events of a whole utterance, with the pause after it."""
    events = [event for text in texts for event in frame(protocol, VOICE, text)]
    return events + [event for _ in range(PAUSE_FRAMES) for event in frame(protocol)]


# The session.


def test_the_session_is_created_at_once_with_known_keys_only() -> None:
    """Pipecat validates it, and stops reading without a word if a type is wrong."""
    (created,) = map(json.loads, RealtimeProtocol(TERMS).opened())
    assert created["type"] == "session.created" and created["event_id"]
    session = created["session"]
    assert session.pop("personaplex") == {"voice": "NATF0", "seed": 7}
    assert session.pop("id").startswith("sess_") and type(session.pop("expires_at")) is int
    audio = session.pop("audio")
    assert session == {
        "type": "realtime",
        "object": "realtime.session",
        "model": "gpt-realtime",
        "output_modalities": ["audio"],
        "instructions": "",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
    }
    pcm = {"type": "audio/pcm", "rate": 24000}
    assert audio["output"] == {"format": pcm, "voice": "marin", "speed": 1.0}
    assert set(audio["input"]) == {"format", "transcription", "noise_reduction", "turn_detection"}
    assert (audio["input"]["format"], audio["input"]["transcription"]) == (pcm, None)


def test_an_update_changes_what_it_names_and_only_known_keys_come_back() -> None:
    protocol = RealtimeProtocol(TERMS)
    first = updated(
        protocol,
        instructions="You are kind.",
        reasoning={"effort": "low"},
        temperature=1,
        audio={
            "input": {
                "format": {"type": "audio/pcmu"},
                "transcription": {"model": "whisper-1", "delay": "low"},
                "turn_detection": {"type": "semantic_vad", "eagerness": "high", "new": 1},
            },
            "output": {"voice": {"id": "NATM1.pt"}, "speed": 1.5, "other": 1},
        },
    )
    assert first["instructions"] == "You are kind." and not {"reasoning", "temperature"} & set(first)
    assert first["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert first["audio"]["input"]["transcription"] == {"model": "whisper-1"}
    assert first["audio"]["input"]["turn_detection"] == {"type": "semantic_vad", "eagerness": "high"}
    assert first["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "voice": "NATM1",
        "speed": 1.5,
    }
    second = updated(protocol, tools=[{"type": "function", "name": "f"}], audio={"input": {"turn_detection": None}})
    assert second["instructions"] == "You are kind." and second["audio"]["output"] == first["audio"]["output"]
    assert second["tools"] == [{"type": "function", "name": "f"}]
    assert second["audio"]["input"] == {**first["audio"]["input"], "turn_detection": None}
    assert updated(protocol, tools=None, max_output_tokens=None, audio=None)["tools"] == second["tools"]


@pytest.mark.parametrize("voice", [*VOICES, "NATM1", "NATM1.pt", {"id": "NATM1"}, None])
def test_every_voice_of_openai_works(voice: Any) -> None:
    session = updated(RealtimeProtocol(TERMS), audio={"output": {"voice": voice}})
    assert session["personaplex"]["voice"] in TERMS.voices
    assert type(session["audio"]["output"]["voice"]) is str


@pytest.mark.parametrize(
    ("session", "wrong"),
    [
        ({"type": "transcription"}, ("invalid_value", "session.type")),
        ({"model": 3}, ("invalid_value", "session.model")),
        ({"model": ""}, ("invalid_value", "session.model")),
        ({"instructions": 1}, ("invalid_value", "session.instructions")),
        ({"instructions": "\ud83d"}, ("invalid_value", "session.instructions")),
        ({"instructions": "a" * (MAX_INSTRUCTIONS + 1)}, ("string_above_max_length", "session.instructions")),
        ({"audio": []}, ("invalid_value", "session.audio")),
        ({"audio": {"input": 1}}, ("invalid_value", "session.audio.input")),
        ({"audio": {"output": 1}}, ("invalid_value", "session.audio.output")),
        ({"audio": {"input": {"format": "pcm16"}}}, ("invalid_value", "session.audio.input.format")),
        (
            {"audio": {"input": {"format": {"type": "audio/opus"}}}},
            ("invalid_value", "session.audio.input.format.type"),
        ),
        (
            {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            ("invalid_value", "session.audio.output.format.rate"),
        ),
        ({"audio": {"output": {"voice": "bob"}}}, ("invalid_value", "session.audio.output.voice")),
        ({"audio": {"output": {"speed": "fast"}}}, ("invalid_value", "session.audio.output.speed")),
        ({"audio": {"input": {"transcription": "x"}}}, ("invalid_value", "session.audio.input.transcription")),
        ({"audio": {"input": {"turn_detection": "x"}}}, ("invalid_value", "session.audio.input.turn_detection")),
        ({"tools": {}}, ("invalid_value", "session.tools")),
        ({"tools": [1]}, ("invalid_value", "session.tools")),
        ({"tools": [{"x": "a" * MAX_ECHO}]}, ("string_above_max_length", "session")),
        ({"tool_choice": 1}, ("invalid_value", "session.tool_choice")),
        ({"max_output_tokens": "many"}, ("invalid_value", "session.max_output_tokens")),
        ({"tracing": 1}, ("invalid_value", "session.tracing")),
    ],
)
def test_a_wrong_setting_is_refused_by_its_path_and_changes_nothing(session: Any, wrong: tuple[str, str]) -> None:
    for protocol in (RealtimeProtocol(TERMS), begun()):
        before = updated(protocol)
        assert error(protocol, "session.update", session={"instructions": "Other.", **session}) == wrong
        assert updated(protocol) == before
    assert error(RealtimeProtocol(TERMS), "session.update") == ("invalid_value", "session")


def test_a_model_without_a_prompt_takes_any_voice_and_no_persona() -> None:
    protocol = RealtimeProtocol(RealtimeTerms(takes_prompt=False))
    session = updated(protocol, instructions="You are kind.", audio={"output": {"voice": "NATM9"}})
    assert (session["instructions"], session["personaplex"]["voice"]) == ("", None)
    start = send(protocol, "response.create")
    assert isinstance(start, StartMessage)
    assert (start.request.voice, start.request.persona) == (None, "")


def test_a_persona_that_the_model_cannot_take_is_refused_before_the_start() -> None:
    """Afterwards the connection would have to be closed, and LiveKit would come back for ever."""

    def check(asked: ConversationRequest) -> None:
        if len(asked.persona) > 20:
            raise PplexError("This persona is too long.")

    protocol = RealtimeProtocol(RealtimeTerms(voices=TERMS.voices, check=check))
    wrong = ("string_above_max_length", "session.instructions")
    assert error(protocol, "session.update", session={"instructions": "a" * 21}) == wrong
    assert updated(protocol, instructions="a" * 20)["instructions"] == "a" * 20
    item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "b"}]}
    assert error(protocol, "conversation.item.create", item=item) == wrong
    start = send(protocol, "response.create")
    assert isinstance(start, StartMessage) and start.request.persona == "a" * 20


def test_a_client_cannot_keep_the_server_busy_with_personas() -> None:
    checked = list[ConversationRequest]()
    protocol = RealtimeProtocol(RealtimeTerms(voices=TERMS.voices, check=checked.append))
    for number in range(MAX_CHECKS):
        updated(protocol, instructions=f"You are number {number}.")
    assert error(protocol, "session.update", session={"instructions": "Other."})[0] == "rate_limit_exceeded"
    for _ in range(20):
        updated(protocol, tools=[])
    assert len(checked) == MAX_CHECKS
    start = send(protocol, "response.create")
    assert isinstance(start, StartMessage) and start.request == checked[-1]

    several = RealtimeProtocol(TERMS)
    part = {"type": "input_text", "text": "a" * 20_000}
    answers(several, "conversation.item.create", item={"role": "system", "content": [part]})
    wrong = error(several, "conversation.item.create", item={"role": "system", "content": [part]})
    assert wrong == ("string_above_max_length", "session.instructions")


# The start.


def test_response_create_starts_at_once_and_opens_a_response() -> None:
    protocol = RealtimeProtocol(TERMS)
    updated(protocol, instructions="You are kind.", audio={"output": {"voice": "ballad"}})
    message = send(protocol, "response.create", response={"metadata": {"client_event_id": "c1"}})
    assert isinstance(message, StartMessage)
    request = message.request
    assert (request.voice, request.persona, request.seed, request.greeting) == ("NATM1", "You are kind.", 7, None)
    assert kinds(list(map(json.loads, message.answers))) == OPENING
    assert protocol.overdue() is None


def test_audio_starts_it_once_instructions_have_come() -> None:
    """LiveKit sends voice, instructions and tools in a row, and audio at the same time."""
    clock = Clock()
    protocol = RealtimeProtocol(TERMS, clock)
    assert isinstance(send(protocol, "input_audio_buffer.append", audio=AUDIO), AudioMessage)
    updated(protocol, audio={"output": {"voice": "marin"}})
    clock.now += 0.5
    assert protocol.overdue() is None, "no instructions yet"
    updated(protocol, instructions="You are kind.")
    assert protocol.overdue() is None, "more may come"
    updated(protocol, tools=[])
    clock.now += SETTLED_S
    start = protocol.overdue()
    assert start is not None and start.request.persona == "You are kind."


def test_instructions_without_audio_start_nothing() -> None:
    clock = Clock()
    protocol = RealtimeProtocol(TERMS, clock)
    updated(protocol, instructions="You are kind.")
    clock.now += 100
    assert protocol.overdue() is None
    send(protocol, "input_audio_buffer.append", audio=AUDIO)
    assert protocol.overdue() is not None


def test_without_instructions_it_starts_a_second_after_the_first_audio() -> None:
    clock = Clock()
    protocol = RealtimeProtocol(TERMS, clock)
    assert isinstance(send(protocol, "input_audio_buffer.append", audio=""), NoEffectMessage)
    clock.now += 5
    assert protocol.overdue() is None
    for _ in range(3):
        send(protocol, "input_audio_buffer.append", audio=AUDIO)
        assert protocol.overdue() is None
        clock.now += UNTOLD_S / 3
    assert protocol.overdue() is not None


def test_endless_settings_do_not_delay_the_start() -> None:
    clock = Clock()
    protocol = RealtimeProtocol(TERMS, clock)
    send(protocol, "input_audio_buffer.append", audio=AUDIO)
    for _ in range(10):
        updated(protocol, instructions="You are kind.")
        clock.now += 0.1
    updated(protocol, tools=[])
    assert protocol.overdue() is not None


def test_system_items_before_the_start_join_the_persona() -> None:
    protocol = RealtimeProtocol(TERMS)
    for role, text in (("system", "No soup."), ("user", "Hello"), ("developer", "It is late."), ("system", "Gone.")):
        content = [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": "data:"}]
        answers(
            protocol, "conversation.item.create", item={"id": text, "type": "message", "role": role, "content": content}
        )
    answers(protocol, "conversation.item.delete", item_id="Gone.")
    updated(protocol, instructions="You are kind.")
    start = send(protocol, "response.create")
    assert isinstance(start, StartMessage)
    assert start.request.persona == "You are kind.\nNo soup.\nIt is late."


def test_a_long_history_does_not_push_out_the_persona() -> None:
    protocol = RealtimeProtocol(TERMS)
    answers(protocol, "conversation.item.create", item=item_of(id="p", role="system"))
    for number in range(MAX_ITEMS + 10):
        answers(protocol, "conversation.item.create", item=item_of(id=f"i{number}"))
    assert error(protocol, "conversation.item.retrieve", item_id="i0")[0] == "item_retrieve_invalid_item_id"
    start = send(protocol, "response.create")
    assert isinstance(start, StartMessage) and start.request.persona


def test_a_refused_item_leaves_the_one_with_its_id() -> None:
    def check(asked: ConversationRequest) -> None:
        if len(asked.persona) > 20:
            raise PplexError("This persona is too long.")

    protocol = RealtimeProtocol(RealtimeTerms(voices=TERMS.voices, check=check))
    part = {"type": "input_text", "text": "No soup."}
    for name in ("a", "b"):
        answers(protocol, "conversation.item.create", item={"id": name, "role": "system", "content": [part]})
    long = {"id": "a", "role": "system", "content": [{**part, "text": "x" * 30}]}
    assert error(protocol, "conversation.item.create", item=long)[0] == "string_above_max_length"
    (found,) = answers(protocol, "conversation.item.retrieve", item_id="a")
    assert found["item"]["content"] == [part]
    start = send(protocol, "response.create")
    assert isinstance(start, StartMessage) and start.request.persona == "No soup.\nNo soup."


@pytest.mark.parametrize("levels", [65, 400, 966, 970, 5000])
def test_what_is_sent_back_is_not_nested_deeply(levels: int) -> None:
    """Near the limit of recursion, the answer could not be written."""
    nested: Any = 1
    for _ in range(levels if levels < 900 else 0):
        nested = {"a": nested}
    text = json.dumps(nested) if levels < 900 else '{"a":' * levels + "1" + "}" * levels
    for name in ("metadata", "tools"):
        field = (
            f'"response.create","response":{{"metadata":{text}}}'
            if name == "metadata"
            else (f'"session.update","session":{{"tools":[{text}]}}')
        )
        answered = RealtimeProtocol(TERMS).parse(f'{{"type":{field}}}')
        assert isinstance(answered, AnsweredMessage)
        assert json.loads(answered.answers[0])["type"] == "error"


def test_after_the_start_voice_instructions_and_formats_stay_and_that_is_no_error() -> None:
    protocol = begun(instructions="You are kind.")
    session = updated(
        protocol,
        instructions="Other.",
        model="other",
        tools=[{"type": "function"}],
        audio={"input": {"format": {"type": "audio/pcma"}}, "output": {"voice": "NATM1"}},
    )
    assert (session["instructions"], session["model"]) == ("You are kind.", "gpt-realtime")
    assert session["audio"]["output"]["voice"] == "marin" and session["personaplex"]["voice"] == "NATF0"
    assert session["audio"]["input"]["format"]["type"] == "audio/pcm"
    assert session["tools"] == [{"type": "function"}]
    item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "No soup."}]}
    added = answers(protocol, "conversation.item.create", item=item)
    assert kinds(added) == ["conversation.item.added", "conversation.item.done"]


# Utterances.


def test_an_utterance_becomes_a_response_in_the_order_that_clients_rely_on() -> None:
    protocol = begun()
    assert frame(protocol) == [], "no audio outside of a response"
    events = said(protocol, " Hello", "", " there")
    deltas = [WORD, DELTA, DELTA, WORD, DELTA, *[DELTA] * PAUSE_FRAMES]
    assert kinds(events) == [*OPENING, *deltas, *CLOSING]
    by_kind = {event["type"]: event for event in events}
    created, done = by_kind["response.created"]["response"], by_kind["response.done"]["response"]
    assert created["object"] == "realtime.response" and created["status"] == "in_progress"
    assert (created["output"], created["metadata"], created["usage"]) == ([], None, None)
    item = by_kind["response.output_item.added"]["item"]
    assert item["content"] == [] and item["status"] == "in_progress"
    assert (item["object"], item["type"], item["role"]) == ("realtime.item", "message", "assistant")
    assert (
        by_kind["conversation.item.added"] | {"previous_item_id": None, "item": item}
        == by_kind["conversation.item.added"]
    )
    for event in events[3:-2]:
        assert event["response_id"] == created["id"]
        assert event.get("item_id", item["id"]) == item["id"]
    assert [event["delta"] for event in events if event["type"] == WORD] == ["Hello", " there"]
    whole = {**item, "status": "completed", "content": [{"type": "output_audio", "transcript": "Hello there"}]}
    assert by_kind["response.output_audio_transcript.done"]["transcript"] == "Hello there"
    assert by_kind["conversation.item.done"]["item"] == by_kind["response.output_item.done"]["item"] == whole
    assert (done["id"], done["status"], done["output"], done["usage"]) == (created["id"], "completed", [whole], None)
    assert frame(protocol) == []


def test_the_next_utterance_is_another_response_behind_the_first() -> None:
    protocol = begun()
    first, second = said(protocol, "a"), said(protocol, "b")
    assert first[2]["item"]["id"] == second[2]["previous_item_id"] != second[2]["item"]["id"]
    assert first[0]["response"]["id"] != second[0]["response"]["id"]
    assert len({event["event_id"] for event in first + second}) == len(first + second)


def test_sound_without_words_and_words_without_sound_are_utterances() -> None:
    for pcm, text in ((VOICE, ""), (SILENCE, " hm")):
        assert kinds(frame(begun(), pcm, text))[:4] == OPENING
    assert frame(begun(), np.full(1920, 59 / 32768, np.float32)) == [], "the codec's own noise"


# What a client asks of responses.


def test_a_response_that_is_asked_for_opens_at_once_and_has_the_clients_metadata() -> None:
    protocol = begun()
    events = answers(protocol, "response.create", response={"metadata": {"client_event_id": "c1"}, "tools": []})
    assert kinds(events) == OPENING
    assert events[0]["response"]["metadata"] == {"client_event_id": "c1"}
    assert frame(protocol) == [], "silence before the first word would be taken for speech"
    assert kinds(frame(protocol, VOICE, " Yes")) == [WORD, DELTA], "and no other one is opened"
    done = said(protocol)[-1]["response"]
    assert (done["id"], done["metadata"]) == (events[0]["response"]["id"], {"client_event_id": "c1"})
    assert done["output"][0]["content"][0]["transcript"] == "Yes"


def test_a_response_in_which_nothing_is_said_is_completed_empty_after_5_seconds() -> None:
    protocol = begun()
    answers(protocol, "response.create")
    events = [event for _ in range(PATIENCE_FRAMES) for event in frame(protocol)]
    assert kinds(events) == CLOSING
    assert (events[-1]["response"]["status"], events[-1]["response"]["output"]) == ("completed", [])
    assert frame(protocol) == []


def test_only_one_response_at_a_time() -> None:
    code = "conversation_already_has_active_response"
    protocol = begun()
    frame(protocol, VOICE)
    assert error(protocol, "response.create") == (code, None)
    asked = RealtimeProtocol(TERMS)
    assert isinstance(send(asked, "response.create"), StartMessage)
    assert error(asked, "response.create") == (code, None)
    assert kinds(said(asked, "a")) == [WORD, DELTA, *[DELTA] * PAUSE_FRAMES, *CLOSING]


@pytest.mark.parametrize("by_id", [False, True])
def test_a_cancel_ends_the_response_and_drops_the_rest_of_the_utterance(by_id: bool) -> None:
    protocol = begun()
    response_id = frame(protocol, VOICE, " Hello")[0]["response"]["id"]
    events = answers(protocol, "response.cancel", **({"response_id": response_id} if by_id else {}))
    assert kinds(events) == CLOSING
    done = events[-1]["response"]
    assert (done["status"], done["output"][0]["status"]) == ("cancelled", "incomplete")
    assert done["output"][0]["content"][0]["transcript"] == "Hello"
    assert said(protocol, " my", " friend") == []
    assert kinds(frame(protocol, VOICE, " Next"))[:4] == OPENING


def test_a_frame_that_was_encoded_before_the_cancel_is_not_sent_after_it() -> None:
    protocol = begun()
    frame(protocol, VOICE)
    encoded: Callable[[], list[Any]] = protocol.encode(VOICE, " late")
    answers(protocol, "response.cancel")
    assert encoded() == []


def test_a_cancel_without_a_response_is_the_error_that_clients_expect() -> None:
    protocol = begun()
    frame(protocol, VOICE)
    for fields in ({"response_id": "resp_other"}, {"response_id": 3}):
        assert error(protocol, "response.cancel", **fields)[0] == "response_cancel_not_active"
    for other in (RealtimeProtocol(TERMS), begun()):
        (answer,) = answers(other, "response.cancel")
        assert answer["error"]["code"] == "response_cancel_not_active"
        assert answer["error"]["message"].startswith("Cancellation failed")


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        ({"conversation": "none"}, ("unsupported_parameter", "response.conversation")),
        ([], ("invalid_value", "response")),
        ({"metadata": "x"}, ("invalid_value", "response.metadata")),
        ({"metadata": {"x": "a" * 20_000}}, ("string_above_max_length", "response.metadata")),
        ({"personaplex": 1}, ("invalid_value", "response.personaplex")),
        ({"personaplex": {"say": 1}}, ("invalid_value", "response.personaplex.say")),
        ({"personaplex": {"say": "Hello"}}, ("unsupported_parameter", "response.personaplex.say")),
    ],
)
def test_a_wrong_response_is_refused_and_starts_nothing(response: Any, wrong: tuple[str, str]) -> None:
    for protocol in (RealtimeProtocol(TERMS), begun()):
        assert error(protocol, "response.create", response=response) == wrong
        assert isinstance(send(protocol, "response.create"), StartMessage | AnsweredMessage)


def test_instructions_of_a_response_are_not_said() -> None:
    """LiveKit's generate_reply sends an instruction, with those of the session before it."""
    protocol = begun(CONTROLS)
    assert kinds(answers(protocol, "response.create", response={"instructions": "Greet the user."})) == OPENING


def test_with_permission_words_are_said() -> None:
    response = {"personaplex": {"say": "Your table is ready."}, "metadata": {"a": "b"}}
    first = send(RealtimeProtocol(CONTROLS), "response.create", response=response)
    assert isinstance(first, StartMessage) and first.request.greeting == "Your table is ready."
    protocol = begun(CONTROLS)
    message = send(protocol, "response.create", response=response, event_id="e7")
    assert isinstance(message, OrderMessage)
    order = json.loads(message.payload)
    assert (order["type"], order["text"]) == ("say", "Your table is ready.")
    opened = list(map(json.loads, message.answers))
    assert kinds(opened) == OPENING and opened[0]["response"]["metadata"] == {"a": "b"}
    assert protocol.metadata({"type": "said", "id": order["id"], "state": "done"}) == []
    refused = protocol.metadata({"type": "refused", "id": order["id"], "reason": "It can be read in several ways."})
    events = list(map(json.loads, refused))
    assert kinds(events) == [*CLOSING, "error"] and events[-2]["response"]["status"] == "failed"
    assert (events[-1]["error"]["message"], events[-1]["error"]["event_id"]) == (
        "It can be read in several ways.",
        "e7",
    )
    message = send(protocol, "response.create", response=response)
    assert isinstance(message, OrderMessage)
    assert protocol.metadata({"type": "done", "id": json.loads(message.payload)["id"], "frame": 3}) == []
    assert kinds(said(protocol, " Your"))[-1] == "response.done"


# Items and the rest of a client's events.


def item_of(**fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}], **fields}


def test_items_are_added_with_the_clients_id_or_a_new_one_behind_the_last() -> None:
    protocol = RealtimeProtocol(TERMS)
    first = answers(protocol, "conversation.item.create", item=item_of(id="a"))
    assert kinds(first) == ["conversation.item.added", "conversation.item.done"]
    assert first[0]["previous_item_id"] is None and first[0]["item"] == first[1]["item"]
    assert first[0]["item"] == {**item_of(id="a"), "object": "realtime.item", "status": "completed"}
    second = answers(protocol, "conversation.item.create", item=item_of(), previous_item_id=None)[0]
    assert second["item"]["id"] and second["previous_item_id"] == "a"
    between = answers(protocol, "conversation.item.create", item=item_of(id="b"), previous_item_id="a")[0]
    assert between["previous_item_id"] == "a"
    root = answers(protocol, "conversation.item.create", item=item_of(id="c"), previous_item_id="root")[0]
    assert root["previous_item_id"] is None
    unknown = answers(protocol, "conversation.item.create", item=item_of(id="d"), previous_item_id="x")[0]
    assert unknown["previous_item_id"] == second["item"]["id"]
    committed = answers(protocol, "input_audio_buffer.commit")[0]
    assert committed["previous_item_id"] == "d" and committed["item_id"]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call_output", "call_id": "c", "output": "{}"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "detail": "low"}]},
        {"type": "mcp_list_tools", "name": "x"},
    ],
)
def test_items_without_an_effect_are_taken(item: dict[str, Any]) -> None:
    added = answers(begun(), "conversation.item.create", item=item)[0]["item"]
    assert item.items() <= added.items()


def test_audio_and_images_do_not_come_back() -> None:
    content = [
        {"type": "input_audio", "audio": "A" * 5000, "transcript": "x"},
        {"type": "input_image", "image_url": "y"},
    ]
    added = answers(begun(), "conversation.item.create", item=item_of(content=content))[0]["item"]
    assert added["content"] == [{"type": "input_audio", "transcript": "x"}, {"type": "input_image"}]


@pytest.mark.parametrize(
    ("item", "wrong"),
    [
        (None, ("invalid_value", "item")),
        ({"type": 1}, ("invalid_value", "item.type")),
        (item_of(id=1), ("invalid_value", "item.id")),
        (item_of(role="bob"), ("invalid_value", "item.role")),
        (item_of(content="Hello"), ("invalid_value", "item.content")),
        (item_of(content=[{"text": 1}]), ("invalid_value", "item.content[0].text")),
        (item_of(content=[{"text": "\ud83d"}]), ("invalid_value", "item.content[0].text")),
        ({"type": "function_call", "arguments": "a" * MAX_ITEM}, ("string_above_max_length", "item")),
    ],
)
def test_a_wrong_item_is_refused(item: Any, wrong: tuple[str, str]) -> None:
    assert error(RealtimeProtocol(TERMS), "conversation.item.create", item=item) == wrong


def test_delete_truncate_and_clear_are_always_answered() -> None:
    for protocol in (RealtimeProtocol(TERMS), begun()):
        assert answers(protocol, "conversation.item.delete", item_id="x")[0]["item_id"] == "x"
        (cut,) = answers(
            protocol, "conversation.item.truncate", item_id="x", content_index=3, audio_end_ms=10**9, event_id="t"
        )
        assert (cut["type"], cut["item_id"]) == ("conversation.item.truncated", "x")
        assert (cut["content_index"], cut["audio_end_ms"]) == (3, 10**9)
        assert kinds(answers(protocol, "conversation.item.truncate", item_id="x")) == ["conversation.item.truncated"]
        assert kinds(answers(protocol, "input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
        assert kinds(answers(protocol, "input_audio_buffer.commit")) == ["input_audio_buffer.committed"]
        for kind in ("conversation.item.delete", "conversation.item.truncate"):
            assert error(protocol, kind) == ("invalid_value", "item_id")
            assert error(protocol, kind, item_id="é" * 600) == ("invalid_value", "item_id")


def test_items_can_be_retrieved_and_what_is_not_there_is_the_error_that_clients_expect() -> None:
    protocol = begun()
    item_id = said(protocol, " Hello")[2]["item"]["id"]
    (found,) = answers(protocol, "conversation.item.retrieve", item_id=item_id)
    assert found["type"] == "conversation.item.retrieved"
    assert found["item"]["content"] == [{"type": "output_audio", "transcript": "Hello"}]
    answers(protocol, "conversation.item.delete", item_id=item_id)
    for gone in (item_id, "x", None, ["x"]):
        assert error(protocol, "conversation.item.retrieve", item_id=gone)[0] == "item_retrieve_invalid_item_id"


def test_old_items_are_forgotten() -> None:
    protocol = begun()
    for number in range(MAX_ITEMS + 10):
        answers(protocol, "conversation.item.create", item=item_of(id=f"i{number}"))
    assert error(protocol, "conversation.item.retrieve", item_id="i9")[0] == "item_retrieve_invalid_item_id"
    assert answers(protocol, "conversation.item.retrieve", item_id="i10")
    for number in range(10):
        large = {"id": f"l{number}", "type": "function_call", "arguments": "a" * (MAX_ITEM - 200)}
        answers(protocol, "conversation.item.create", item=large)
    assert error(protocol, "conversation.item.retrieve", item_id="l5")[0] == "item_retrieve_invalid_item_id"
    assert answers(protocol, "conversation.item.retrieve", item_id="l9")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"type": 3}', "[" * 100_000])
def test_what_is_no_event_is_answered_with_an_error(text: str) -> None:
    for protocol in (RealtimeProtocol(TERMS), begun()):
        message = protocol.parse(text)
        assert isinstance(message, AnsweredMessage)
        (answer,) = map(json.loads, message.answers)
        assert answer["error"]["code"] in ("invalid_json", "invalid_event")


def test_unknown_events_and_binary_messages() -> None:
    for kind in ("session.close", "output_audio_buffer.clear", "transcription_session.update", "response.audio.delta"):
        assert error(begun(), kind) == ("invalid_event", "type")
    with pytest.raises(ProtocolError) as refused:
        begun().parse(b"{}")
    assert begun().farewell(CloseReason(refused.value.code, "", "protocol")) == ([], 1003)


# Audio.

PCM, MU, A = {"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}


@pytest.mark.parametrize("hears", [PCM, MU, A], ids=["pcm", "pcmu", "pcma"])
@pytest.mark.parametrize("says", [PCM, MU, A], ids=["pcm", "pcmu", "pcma"])
def test_each_direction_has_its_own_format(hears: dict[str, Any], says: dict[str, Any]) -> None:
    protocol = begun(audio={"input": {"format": hears}, "output": {"format": says}})
    sizes = {"audio/pcm": 3840, "audio/pcmu": 640, "audio/pcma": 640}
    delta = next(event["delta"] for event in frame(protocol, VOICE) if event["type"] == DELTA)
    assert len(base64.b64decode(delta)) == sizes[says["type"]]
    payload = base64.b64encode(bytes(sizes[hears["type"]])).decode()
    message = send(protocol, "input_audio_buffer.append", audio=payload)
    assert isinstance(message, AudioMessage)
    assert len(protocol.decode(message.payload, 1 << 20).pcm) in range(1900, 1921)
    short = {"audio/pcm": "pcm-24k", "audio/pcmu": "pcmu-8k", "audio/pcma": "pcma-8k"}
    one, other = short[hears["type"]], short[says["type"]]
    assert protocol.audio == (one if one == other else f"{one}/{other}")


def test_at_24_khz_samples_are_those_of_the_model() -> None:
    pcm = speech(1)[0]
    delta = frame(begun(), pcm, " a")[-1]
    assert base64.b64decode(delta["delta"]) == pcm16(pcm)


@pytest.mark.parametrize(
    "audio", [None, 3, "not base64", "AAA", ["AAAA"], base64.b64encode(b"RIFF" + bytes(99)).decode()]
)
def test_wrong_audio_is_refused(audio: Any) -> None:
    assert error(begun(), "input_audio_buffer.append", audio=audio) == ("invalid_audio", "audio")


def test_the_users_speech_is_told_only_if_asked_for_and_with_turn_detection() -> None:
    for terms, turns, told in (
        (TERMS, {"type": "server_vad"}, False),
        (RealtimeTerms(voices=TERMS.voices, tells_speech=True), {"type": "server_vad"}, True),
        (RealtimeTerms(voices=TERMS.voices, tells_speech=True), None, False),
    ):
        protocol = begun(terms, audio={"input": {"turn_detection": turns}})
        found = []
        for pcm in (*[VOICE] * 10, *[SILENCE] * 20):
            protocol.decode(pcm16(pcm), 1920)
            found += kinds(frame(protocol))
        expected = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
        assert found == (expected if told else [])


# Ends.


@pytest.mark.parametrize(
    ("cause", "code", "then"),
    [
        ("idle", Close.POLICY, ("session_expired", 1008)),
        ("duration", Close.POLICY, ("session_expired", 1008)),
        ("shutdown", Close.GOING_AWAY, (None, 1001)),
        ("queue", Close.TRY_LATER, ("server_busy", 1013)),
        ("full", Close.TRY_LATER, ("server_busy", 1013)),
        ("defect", Close.INTERNAL, ("server_error", 1011)),
        ("engine", Close.INTERNAL, ("server_error", 1011)),
        ("protocol", Close.POLICY, ("rate_limit_exceeded", 1008)),
        ("slow", Close.NOT_READING, (None, 1008)),
        ("lost", None, (None, 1011)),
    ],
)
def test_each_end_has_its_error_and_its_code(cause: str, code: Close | None, then: tuple[str | None, int]) -> None:
    for protocol in (RealtimeProtocol(TERMS), begun()):
        messages, closed_with = protocol.farewell(CloseReason(code, "A reason.", cause))
        codes = [json.loads(message)["error"]["code"] for message in messages]
        assert (codes, closed_with) == ([then[0]] if then[0] else [], then[1])


def test_an_open_response_is_incomplete_at_the_end() -> None:
    protocol = begun()
    frame(protocol, VOICE, " Hello")
    messages, code = protocol.farewell(CloseReason(Close.GOING_AWAY, "", "shutdown"))
    events = list(map(json.loads, messages))
    assert (kinds(events), events[-1]["response"]["status"], code) == (CLOSING, "incomplete", 1001)


# Anything.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["AAAA", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "session",
        "audio",
        "item",
        "item_id",
        "event_id",
        "model",
        "response",
        "format",
        "input",
        "output",
        "voice",
        "content",
        "role",
        "type",
        "metadata",
        "personaplex",
        "say",
        "tools",
        "turn_detection",
        "previous_item_id",
    ]
)
FIELDS = st.dictionaries(
    NAMES, VALUES | st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=4), max_size=4
)
KINDS = st.sampled_from([*ANSWERS, "input_audio_buffer.append", "response.create"]) | st.text(max_size=20)


@settings(max_examples=300)
@given(st.booleans(), st.lists(st.tuples(KINDS, FIELDS) | st.text(max_size=40) | st.booleans(), max_size=8))
def test_no_message_breaks_it_and_audio_is_only_in_responses(is_begun: bool, steps: list[Any]) -> None:
    protocol = begun(CONTROLS) if is_begun else RealtimeProtocol(CONTROLS)
    open_id = None
    for step in steps:
        if isinstance(step, bool):
            messages = protocol.encode(VOICE if step else SILENCE, "")()
        else:
            text = step if isinstance(step, str) else json.dumps({**step[1], "type": step[0]})
            message = protocol.parse(text)
            if isinstance(message, AudioMessage):
                protocol.decode(message.payload, 1920)
            messages = list(getattr(message, "answers", ()))
        for event in map(json.loads, messages):
            assert len(json.dumps(event)) < 1 << 20 and event["event_id"]
            if event["type"] == "response.created":
                assert open_id is None
                open_id = event["response"]["id"]
            elif event["type"] == "response.done":
                assert open_id == event["response"]["id"]
                open_id = None
            elif event["type"] == DELTA:
                assert event["response_id"] == open_id
