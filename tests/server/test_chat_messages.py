"""Messages of the wire protocol: bytes to messages and back."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pplex.server.chat_messages import Kind, pack, pack_metadata, unpack
from pplex.server.chat_protocol import ChatProtocol
from pplex.server.chat_request import ChatRequest
from pplex.server.wire import ClosingMessage


def test_a_handshake_is_one_zero_byte() -> None:
    assert pack(Kind.HANDSHAKE) == b"\0"


def test_metadata_is_json() -> None:
    message = pack_metadata({"type": "queued", "position": 2})
    assert message[0] == 4
    assert json.loads(message[1:]) == {"type": "queued", "position": 2}


@given(st.sampled_from(Kind), st.binary(max_size=200))
def test_packed_messages_are_unpacked(kind: Kind, payload: bytes) -> None:
    assert unpack(pack(kind, payload)) == (kind, payload)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_an_unknown_kind(message: bytes) -> None:
    kind, payload = unpack(message)
    if kind is None:
        assert not message or message[0] > 6
    else:
        assert bytes([kind]) + payload == message


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_message_ends_a_conversation_with_the_code_after_which_clients_reconnect(message: bytes | str) -> None:
    """Only a client that asks for the end gets 1000, and this protocol has no message that asks for it."""
    assert not isinstance(ChatProtocol(ChatRequest()).parse(message), ClosingMessage)
