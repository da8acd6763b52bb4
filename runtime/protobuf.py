"""Reads and writes protobuf messages as lists of fields, without knowing their schema. Called by `runtime.kernel_graph`.

The runtime changes graphs, but must not need the package onnx. Fields that are not changed keep their bytes.
Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """A field: its number, its wire type, and an integer (VARINT) or bytes."""

    number: int
    wire: int
    value: int | memoryview


def fields(message: bytes | memoryview) -> Iterator[Field]:
    """The fields of a message, in order. Raises ValueError if it is damaged."""
    data, at = memoryview(message), 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield Field(number, wire, value)
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in _SIZES:
            size = _SIZES[wire]
        else:
            raise ValueError(f"unknown wire type {wire}")
        if at + size > len(data):
            raise ValueError("the message ends within a field")
        yield Field(number, wire, data[at : at + size])
        at += size


def message(parts: Iterable[Field]) -> bytes:
    """The message with these fields."""
    data = bytearray()
    for number, wire, value in parts:
        data += _bytes_of(number << 3 | wire)
        if isinstance(value, int):
            data += _bytes_of(value)
            continue
        if wire == BYTES:
            data += _bytes_of(len(value))
        data += value
    return bytes(data)


def integer(number: int, value: int) -> Field:
    """A field with an integer that is not negative."""
    return Field(number, VARINT, value)


def text(number: int, value: str) -> Field:
    """A field with a string."""
    return nested(number, value.encode())


def nested(number: int, value: bytes) -> Field:
    """A field with bytes or a message."""
    return Field(number, BYTES, memoryview(value))


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The integer at `at`, and where the next field begins."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("the message ends within an integer")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _bytes_of(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)
