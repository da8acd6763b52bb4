"""Messages of `/api/chat` as bytes, and as kind and payload. No I/O.

The protocol is the reference's; docs/protocol.md describes it. Server and client use this module.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

PATH = "/api/chat"


class Kind(IntEnum):
    """The first byte of every message."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


def pack(kind: Kind, payload: bytes = b"") -> bytes:
    """One message."""
    return bytes([kind]) + payload


def pack_metadata(content: Mapping[str, Any]) -> bytes:
    """A metadata message."""
    return pack(Kind.METADATA, json.dumps(content, separators=(",", ":")).encode())


def unpack(message: bytes) -> tuple[Kind | None, bytes]:
    """Kind and payload. The kind is None if the message is empty or its kind unknown; the reference ignores both."""
    if not message or message[0] > max(Kind):
        return None, message[1:]
    return Kind(message[0]), message[1:]
