"""Orders as JSON: what is read, and what is refused with which reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplex.server.orders import ORDERS, Order, OrderError, parse_order

VOICES = {"NATF0": 0, "mine": 0}


def parse(content: object) -> Order:
    return parse_order(content if isinstance(content, bytes) else json.dumps(content).encode(), VOICES)


def test_orders_are_read() -> None:
    assert parse({"type": "hold"}) == Order("hold", None, {})
    said = parse({"type": "say", "id": "a", "text": "Hi", "when": "turn", "interrupt": True, "gap": 3})
    assert said == Order("say", "a", {"text": "Hi", "when": "turn", "interrupt": True, "gap": 3})
    assert parse({"type": "rebuild", "voice": "mine.pt", "facts": None, "keep_seconds": 1.5}).arguments == {
        "voice": "mine",
        "keep_seconds": 1.5,
    }


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"type": "hold"', "not JSON"),
        (b'{"type": "rewind", "seconds": NaN}', "NaN is not a number"),
        (b'{"type": "rewind", "seconds": -Infinity}', "-Infinity is not a number"),
        (b'{"type": "rewind", "seconds": 1e999}', "seconds is inf"),
        (b'{"type": "rewind", "seconds": ' + b"9" * 400 + b"}", "seconds is 999"),
        (b'{"type": "rewind", "seconds": ' + b"9" * 9000 + b"}", "not JSON"),
        (b'{"type": "hold", "type": "release"}', "'type' is there twice"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"type":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
        ([], "an object"),
        ("hold", "an object"),
        ({}, "type is missing, but must be say, hold"),
        ({"type": "shout"}, "type is 'shout'"),
        ({"type": ["say"]}, "type is a list"),
        ({"type": "say"}, "say needs text"),
        ({"type": "say", "text": 5}, "text is 5, but must be a text"),
        ({"type": "say", "text": "a", "interrupt": 1}, "interrupt is 1, but must be true or false"),
        ({"type": "say", "text": "a", "gap": True}, "gap is true, but must be a whole number"),
        ({"type": "say", "text": "a", "gap": 1.0}, "gap is 1.0, but must be a whole number"),
        ({"type": "say", "text": "a", "loud": 1}, "say takes text, when, interrupt, gap, not 'loud'"),
        ({"type": "hold", "seconds": 1}, "hold takes nothing, not 'seconds'"),
        ({"type": "rewind", "seconds": "1"}, "seconds is '1'"),
        ({"type": "rewind", "seconds": -1}, "seconds is -1"),
        ({"type": "rebuild", "voice": "../mine"}, "Unknown voice '../mine'"),
        ({"type": "hold", "id": 5}, "id must be a text"),
        ({"type": "hold", "id": "x" * 65}, "at most 64 characters"),
    ],
)  # fmt: skip
def test_a_wrong_order_is_refused_with_its_reason(content: object, reason: str) -> None:
    with pytest.raises(OrderError) as caught:
        parse(content)
    assert reason in str(caught.value) and len(str(caught.value)) < 400


def test_a_refusal_has_the_name_and_the_id_of_its_order() -> None:
    with pytest.raises(OrderError) as caught:
        parse({"type": "say", "id": "a1"})
    assert (caught.value.name, caught.value.id) == ("say", "a1")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)
NAMES = st.sampled_from(["type", "id", *{name for fields in ORDERS.values() for name in fields}]) | st.text(max_size=9)


@given(st.dictionaries(NAMES, VALUES, max_size=6), st.sampled_from([*ORDERS, "", None]), st.binary(max_size=20))
def test_any_message_is_an_order_or_a_readable_refusal(
    content: dict[str, object], name: str | None, garbage: bytes
) -> None:
    whole = json.dumps({**content, **({"type": name} if name else {})}).encode()
    for payload in (whole, garbage, whole[:-1] + garbage, garbage + whole):
        try:
            order = parse(payload)
        except OrderError as error:
            assert str(error).isprintable() and len(str(error)) < 2000
        else:
            assert set(order.arguments) <= set(ORDERS[order.name])
            assert None not in order.arguments.values()
