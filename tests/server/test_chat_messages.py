"""Messages of the wire protocol: bytes to messages and back."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pplex.server.chat_messages import Kind, pack, pack_metadata, unpack
from pplex.server.wire import Close


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


def test_no_close_code_makes_clients_reconnect() -> None:
    assert 1000 not in list(Close)
