"""Messages of `/api/chat` as bytes and as kind and payload, and the close codes. No I/O.

The protocol is the reference's; docs/protocol.md describes it. Server and client use this module.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from pplex.runtime.config import SAMPLE_RATE_HZ

FRAME_SIZE = 1920  # samples
FRAME_S = FRAME_SIZE / SAMPLE_RATE_HZ  # 80 ms
MAX_MESSAGE = 65536  # bytes
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


class Close(IntEnum):
    """Close codes. Never 1000: after it, a known client reconnects at once, a thousand times a second."""

    GOING_AWAY = 1001
    INVALID = 1007
    POLICY = 1008
    INTERNAL = 1011
    TRY_LATER = 1013
    RESUMED_ELSEWHERE = 4001
    NOT_READING = 4002


class ProtocolError(Exception):
    """A message that breaks the protocol: `code` to close with, and the reason."""

    def __init__(self, code: Close, reason: str):
        super().__init__(reason)
        self.code = code


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
