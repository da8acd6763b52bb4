"""Damaged Ogg pages: lost and kept packets, and the work of the reader."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ogg_streams import HEAD, MOST_KEPT, SERIAL, continued, kept, likely_data, packet, packets_of, random_data, stream

from pplex.server import ogg
from pplex.server.ogg import (
    CONTINUED,
    MAX_PACKET_BYTES,
    MAX_PAGE_BYTES,
    OpusHead,
    PageReader,
    build_page,
    lacing_of,
)


@given(st.integers(0, 510), st.integers(1, 255))
def test_a_damaged_byte_loses_only_its_page(at: int, change: int) -> None:
    pages, reader = stream(3), PageReader()
    damaged = bytearray(pages[3])
    damaged[at] ^= change
    reader.push(b"".join(pages[:3]) + damaged)
    assert reader.push(pages[4]) == packets_of(2)
    assert reader.skipped_bytes == len(damaged)
    assert reader.bad_pages == 1 or at < len(ogg.MARK)


def test_a_truncated_page_does_not_lose_the_next_one() -> None:
    pages, reader = stream(3), PageReader()
    reader.push(b"".join(pages[:3]) + pages[3][:300])
    assert reader.push(pages[4]) == packets_of(2)
    assert (reader.bad_pages, reader.skipped_bytes) == (1, 300)


@pytest.mark.parametrize("garbage", [b"x", b"OggS", b"Ogg", b"OggS\0", b"OggSOggS\0OggOggS", b"\xff" * 5000])
def test_garbage_between_pages_loses_no_page(garbage: bytes) -> None:
    reader = PageReader()
    assert reader.push(garbage.join([b"", *stream(3)])) == [HEAD, *packets_of(0, 1, 2)]
    assert reader.skipped_bytes == 5 * len(garbage)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_packet_with_a_lost_part_is_dropped_and_the_next_is_read(lost: int) -> None:
    pages = continued(9, [packet(0, 510), packet(1, 255), packet(2, 300)])
    after = build_page(0, 0, SERIAL, 12, lacing_of([packet(3)]), packet(3))
    assert PageReader().push(b"".join([*pages[:lost], *pages[lost + 1 :], after])) == [packet(3)]


def test_an_unfinished_packet_is_dropped() -> None:
    begun = continued(9, [packet(0, 510), packet(1)])[0]
    assert PageReader().push(begun + build_page(0, 0, SERIAL, 10, lacing_of([packet(3)]), packet(3))) == [packet(3)]


def test_an_endless_packet_is_not_buffered() -> None:
    reader, found = PageReader(), []
    for sequence in range(20):
        found += reader.push(build_page(CONTINUED if sequence else 0, 0, SERIAL, sequence, b"\xff" * 255, bytes(65025)))
        assert kept(reader) <= MAX_PACKET_BYTES
    found += reader.push(build_page(CONTINUED, 0, SERIAL, 20, b"\x05\x78", bytes(5) + packet(0)))
    assert found == [packet(0)]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"OpusHead",
        HEAD.packet()[:-1],
        HEAD.packet().replace(b"OpusHead\1", b"OpusHead\x10"),
        HEAD.packet()[:9] + b"\0" + HEAD.packet()[10:],
        HEAD.packet()[:9] + b"\3" + HEAD.packet()[10:],
        HEAD.packet()[:-1] + b"\1",
    ],
)
def test_an_invalid_head_parses_to_none(damaged: bytes) -> None:
    assert OpusHead.parse(damaged) is None


@settings(max_examples=200)
@given(st.lists(random_data | likely_data))
def test_arbitrary_bytes_give_nothing_and_leave_the_reader_working(messages: list[bytes]) -> None:
    reader = PageReader()
    for message in messages:
        assert reader.push(message) == []
        assert kept(reader) < MOST_KEPT
    assert reader.push(b"".join(stream(1))) == [HEAD, *packets_of(0)]


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_stream_gives_only_its_own_packets(data: st.DataObject) -> None:
    pages = stream(6)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(pages) - 1))
        page = pages[at]
        cut = data.draw(st.integers(0, len(page)))
        kind = data.draw(st.sampled_from(["damage", "cut", "insert", "drop", "repeat", "swap"]))
        if kind == "damage" and page:
            pages[at] = page[:cut] + bytes([data.draw(st.integers(0, 255))]) + page[cut + 1 :]
        elif kind == "cut":
            pages[at] = page[:cut]
        elif kind == "insert":
            pages[at] = page[:cut] + data.draw(likely_data) + page[cut:]
        elif kind == "drop":
            pages[at] = b""
        elif kind == "repeat":
            pages[at] = page * 2
        else:
            pages[at], pages[0] = pages[0], page
    reader = PageReader()
    found = reader.push(b"".join(pages))
    assert {item for item in found if isinstance(item, bytes)} <= set(packets_of(*range(6)))
    assert kept(reader) < MOST_KEPT


def test_reader_buffers_at_most_a_page_and_a_packet() -> None:
    reader = PageReader()
    reader.push(build_page(0, 0, SERIAL, 0, b"\xff" * 240, bytes(61_200)))
    reader.push(build_page(CONTINUED, 0, SERIAL, 1, b"\xff" * 255, bytes(65025))[:-1])
    assert MAX_PAGE_BYTES + 61_000 < kept(reader) < MOST_KEPT


HOSTILE = {
    "OggS": b"OggS",
    "marks": b"OggS\0",
    "headers": b"OggS\0" + b"\xff" * 22,
    "headers that claim much": b"OggS\0" + bytes(21) + b"\xff" * 256,
    "nested pages": b"OggS\0" + bytes(21) + b"\x05\x96\x96\x96\x96\x96",
    "a page never finished": b"OggS\0" + bytes(21) + b"\xff" * 256 + bytes(65024),
}


class CountedSearches(bytearray):
    """Counts the bytes that searches looked at."""

    looked_through = 0

    def find(self, mark: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        found = super().find(mark, start, end)
        last = found + len(mark) if found >= 0 else min(len(self), len(self) if end is None else end)
        self.looked_through += max(0, last - start)
        return found


@pytest.mark.parametrize("message_bytes", [1, 1000, 65536])
@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_byte_is_checked_twice_or_searched_often(
    monkeypatch: pytest.MonkeyPatch, pattern: bytes, message_bytes: int
) -> None:
    checked, summed = [0], [0]

    def checksum(page: bytes, real=ogg.checksum) -> bytes:  # type: ignore[no-untyped-def]
        checked[0] += len(page)
        return real(page)

    def claimed(data: bytearray, start: int, real=ogg._claimed_bytes) -> int:  # type: ignore[no-untyped-def]
        summed[0] += 1
        return real(data, start)

    monkeypatch.setattr(ogg, "checksum", checksum)
    monkeypatch.setattr(ogg, "_claimed_bytes", claimed)
    size = 65536 if message_bytes > 1 else 8192
    data = (pattern * (size // len(pattern) + 1))[:size]
    reader = PageReader()
    reader._bytes = searches = CountedSearches()
    for start in range(0, len(data), message_bytes):
        assert reader.push(data[start : start + message_bytes]) == []
    assert checked[0] <= len(data)
    assert searches.looked_through <= 15 * len(data)
    assert summed[0] <= len(data) // len(ogg.MARK) + len(data) // message_bytes + 1
