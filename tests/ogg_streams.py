"""Streams of Ogg pages for tests."""

import random
from collections.abc import Iterator

from hypothesis import strategies as st

from pplex.server.ogg import (
    CONTINUED,
    OpusHead,
    PageReader,
    PageWriter,
    build_page,
    lacing_of,
    tags_packet,
)

HEAD = OpusHead(312, 24_000)
SERIAL = 77
MOST_KEPT = 128 * 1024

random_data = st.binary(max_size=400)
likely_data = st.lists(st.sampled_from([b"OggS\0", b"OggS", b"Ogg", b"\xff" * 20, b"\0", b"\1"]) | random_data).map(
    b"".join
)


def packet(index: int, size: int = 120) -> bytes:
    """Bytes that differ from packet to packet and contain no page mark."""
    return bytes([0x58]) + random.Random(index).randbytes(size - 1).replace(b"O", b"o")


def stream(pages: int, serial: int = SERIAL) -> list[bytes]:
    """Both headers and `pages` pages of four packets: 4 * i, ..., 4 * i + 3."""
    writer = PageWriter(serial)
    headers = [writer.page([HEAD.packet()]), writer.page([tags_packet()])]
    return headers + [writer.page([packet(4 * i + k) for k in range(4)], 3840) for i in range(pages)]


def packets_of(*pages: int) -> list[bytes]:
    return [packet(4 * page + k) for page in pages for k in range(4)]


def split(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    ends = sorted(cut % (len(data) + 1) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        yield data[start:end]


def kept(reader: PageReader) -> int:
    return len(reader._bytes) + len(reader._unfinished or b"")


def continued(sequence: int, pieces: list[bytes], last_size: int = 0) -> list[bytes]:
    """One packet over several pages; all pieces but the last hold whole segments."""
    pages = []
    for i, piece in enumerate(pieces):
        lacing = lacing_of([piece]) if i == len(pieces) - 1 else b"\xff" * (len(piece) // 255)
        pages.append(build_page(CONTINUED if i else 0, 0, SERIAL, sequence + i, lacing, piece))
    return pages
