"""Pages: what is written is read again, whatever happens to it on the way."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.server import ogg
from pplex.server.ogg import (
    CONTINUED,
    FIRST,
    LAST,
    MAX_PACKET_BYTES,
    MAX_PAGE_BYTES,
    OpusHead,
    PageReader,
    PageWriter,
    build_page,
    lacing_of,
    packet_samples,
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
    """Bytes that differ from packet to packet and hold no mark."""
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


def slow_crc(data: bytes) -> int:
    """RFC 3533 section 6, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


@given(random_data)
def test_checksum_is_that_of_the_standard(data: bytes) -> None:
    assert ogg.checksum(data) == slow_crc(data).to_bytes(4, "little")


def test_headers_are_pages_0_and_1_and_audio_starts_at_2() -> None:
    headers = [ogg.HEADER.unpack_from(page) for page in stream(2)]
    assert [header[2] for header in headers] == [FIRST, 0, 0, 0]
    assert [header[3] for header in headers] == [0, 0, 3840, 7680]
    assert [header[5] for header in headers] == [0, 1, 2, 3]


def test_last_page_says_so() -> None:
    writer = PageWriter(SERIAL)
    writer.page([HEAD.packet()])
    assert ogg.HEADER.unpack_from(writer.page([packet(0)], 960, last=True))[2] == LAST


def test_a_page_of_more_than_255_segments_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="256 segments"):
        PageWriter(SERIAL).page([b""] * 256)


def test_head_and_audio_are_given_out_and_tags_are_not() -> None:
    reader = PageReader()
    assert reader.push(b"".join(stream(2))) == [HEAD, *packets_of(0, 1)]
    assert (reader.bad_pages, reader.skipped_bytes, kept(reader)) == (0, 0, 0)


@pytest.mark.parametrize("sizes", [[0], [255], [510], [254, 255, 256], [0, 0, 1, 255, 0], [2] * 60, [1275] * 40])
def test_packets_of_any_size_come_back(sizes: list[int]) -> None:
    packets = [packet(i, size) if size else b"" for i, size in enumerate(sizes)]
    assert PageReader().push(PageWriter(SERIAL).page([HEAD.packet()])) == [HEAD]
    assert PageReader().push(build_page(0, 0, SERIAL, 5, lacing_of(packets), b"".join(packets))) == packets


@given(st.lists(st.integers(0, 2000)), likely_data)
def test_any_division_gives_the_same(cuts: list[int], garbage: bytes) -> None:
    pages = stream(3)
    data = b"".join([*pages[:3], garbage, *pages[3:]])
    whole, parts = PageReader(), PageReader()
    expected = whole.push(data)
    assert [item for part in split(data, cuts) for item in parts.push(part)] == expected
    assert (parts.bad_pages, parts.skipped_bytes) == (whole.bad_pages, whole.skipped_bytes)


def test_byte_by_byte_gives_the_same() -> None:
    reader, data = PageReader(), b"".join(stream(2))
    assert [item for byte in data for item in reader.push(bytes([byte]))] == [HEAD, *packets_of(0, 1)]


@given(st.integers(0, 700))
def test_a_stream_begun_in_its_middle_is_read_from_its_next_page(start: int) -> None:
    pages = stream(4)[2:]
    assert len(pages[0]) > 500
    missed = -(-start // len(pages[0]))
    assert PageReader().push(b"".join(pages)[start:]) == packets_of(*range(missed, 4))


@given(st.integers(0, 510), st.integers(1, 255))
def test_a_damaged_byte_loses_its_page_only_and_at_once(at: int, change: int) -> None:
    pages, reader = stream(3), PageReader()
    damaged = bytearray(pages[3])
    damaged[at] ^= change
    reader.push(b"".join(pages[:3]) + damaged)
    assert reader.push(pages[4]) == packets_of(2)
    assert reader.skipped_bytes == len(damaged)
    assert reader.bad_pages == 1 or at < len(ogg.MARK)


def test_a_page_whose_end_is_lost_does_not_take_the_next_one_along() -> None:
    pages, reader = stream(3), PageReader()
    reader.push(b"".join(pages[:3]) + pages[3][:300])
    assert reader.push(pages[4]) == packets_of(2)
    assert (reader.bad_pages, reader.skipped_bytes) == (1, 300)


@pytest.mark.parametrize("garbage", [b"x", b"OggS", b"Ogg", b"OggS\0", b"OggSOggS\0OggOggS", b"\xff" * 5000])
def test_garbage_between_pages_loses_none(garbage: bytes) -> None:
    reader = PageReader()
    assert reader.push(garbage.join([b"", *stream(3)])) == [HEAD, *packets_of(0, 1, 2)]
    assert reader.skipped_bytes == 5 * len(garbage)


def continued(sequence: int, pieces: list[bytes], last_size: int = 0) -> list[bytes]:
    """One packet over several pages; all pieces but the last hold whole segments."""
    pages = []
    for i, piece in enumerate(pieces):
        lacing = lacing_of([piece]) if i == len(pieces) - 1 else b"\xff" * (len(piece) // 255)
        pages.append(build_page(CONTINUED if i else 0, 0, SERIAL, sequence + i, lacing, piece))
    return pages


def test_a_packet_over_several_pages_is_joined() -> None:
    pieces = [packet(0, 510), packet(1, 255), b"", packet(2, 300)]
    assert PageReader().push(b"".join(continued(9, pieces))) == [b"".join(pieces)]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_packet_with_a_part_lost_is_dropped_and_the_next_one_is_not(lost: int) -> None:
    pages = continued(9, [packet(0, 510), packet(1, 255), packet(2, 300)])
    after = build_page(0, 0, SERIAL, 12, lacing_of([packet(3)]), packet(3))
    assert PageReader().push(b"".join([*pages[:lost], *pages[lost + 1 :], after])) == [packet(3)]


def test_a_packet_that_begins_where_a_lost_one_ends_is_joined() -> None:
    pages = [
        build_page(CONTINUED, 0, SERIAL, 4, b"\x78\xff", packet(0) + packet(1, 255)),
        build_page(CONTINUED, 0, SERIAL, 5, b"\x78", packet(2)),
    ]
    assert PageReader().push(b"".join(pages)) == [packet(1, 255) + packet(2)]


def test_a_packet_that_was_never_finished_is_dropped() -> None:
    begun = continued(9, [packet(0, 510), packet(1)])[0]
    assert PageReader().push(begun + build_page(0, 0, SERIAL, 10, lacing_of([packet(3)]), packet(3))) == [packet(3)]


def test_page_numbers_go_round() -> None:
    first, second = (packet(i, 255) for i in range(2))
    pages = [
        build_page(0, 0, SERIAL, 0xFFFFFFFF, b"\xff", first),
        build_page(CONTINUED, 0, SERIAL, 0, b"\xff\0", second),
    ]
    assert PageReader().push(b"".join(pages)) == [first + second]


def test_an_endless_packet_is_dropped_and_not_kept() -> None:
    reader, found = PageReader(), []
    for sequence in range(20):
        found += reader.push(build_page(CONTINUED if sequence else 0, 0, SERIAL, sequence, b"\xff" * 255, bytes(65025)))
        assert kept(reader) <= MAX_PACKET_BYTES
    found += reader.push(build_page(CONTINUED, 0, SERIAL, 20, b"\x05\x78", bytes(5) + packet(0)))
    assert found == [packet(0)]


def test_long_tags_over_several_pages_are_no_audio() -> None:
    pages = continued(1, [tags_packet() + bytes(510 - len(tags_packet())), packet(1)])
    assert PageReader().push(stream(0)[0] + b"".join(pages)) == [HEAD]


def test_a_new_stream_is_followed_and_the_old_one_is_not_any_more() -> None:
    old, new, reader = stream(3), stream(2, SERIAL + 1), PageReader()
    data = [*old[:3], *new[:2], old[3], new[2], old[4], new[3]]
    assert reader.push(b"".join(data)) == [HEAD, *packets_of(0), HEAD, *packets_of(0, 1)]
    assert reader.skipped_bytes == 0


def test_a_stream_that_begins_again_under_its_number_is_a_new_one() -> None:
    assert PageReader().push(b"".join(stream(1) * 2)) == [HEAD, *packets_of(0)] * 2


def test_another_codecs_stream_is_never_followed() -> None:
    vorbis = PageWriter(5)
    first, second = vorbis.page([b"\1vorbis" + bytes(23)]), vorbis.page([packet(0)])
    pages = stream(1)
    assert PageReader().push(first + second) == []
    assert PageReader().push(b"".join([pages[0], first, second, *pages[1:]])) == [HEAD, *packets_of(0)]


def test_after_a_streams_end_the_next_is_followed_though_its_beginning_is_lost() -> None:
    ended = build_page(LAST, 0, SERIAL, 2, lacing_of([packet(9)]), packet(9))
    data = b"".join([*stream(0), ended, *stream(1, SERIAL + 1)[2:]])
    assert PageReader().push(data) == [HEAD, packet(9), *packets_of(0)]


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
def test_a_head_we_cannot_read_is_none(damaged: bytes) -> None:
    assert OpusHead.parse(damaged) is None


def test_a_heads_fields_come_back() -> None:
    for head in (HEAD, OpusHead(0, 48_000, 2), OpusHead(65535, 0)):
        assert OpusHead.parse(head.packet()) == head


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
def test_a_mutilated_stream_gives_only_packets_it_held(data: st.DataObject) -> None:
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


def test_no_more_than_a_page_and_a_packet_are_kept() -> None:
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
    """Knows how many bytes were looked through."""

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


@pytest.mark.parametrize(
    ("packet_bytes", "samples"),
    [
        (b"", 0),
        (b"\x00", 480),
        (b"\x18", 2880),
        (b"\x60", 480),
        (b"\x80", 120),
        (b"\xfc", 960),
        (b"\xf9", 1920),
        (b"\xfa", 1920),
        (b"\x19", 5760),
        (b"\xff", 0),
        (b"\xff\x00", 0),
        (b"\xff\x06", 5760),
        (b"\xff\x86", 5760),
        (b"\xff\x07", 0),
        (b"\x83\x30", 5760),
        (b"\x83\x31", 0),
    ],
)
def test_duration_is_read_from_the_packets_first_bytes(packet_bytes: bytes, samples: int) -> None:
    assert packet_samples(packet_bytes) == samples


@pytest.mark.parametrize("size", [254, 255, 256, 300, 510, 1000])
def test_a_packet_whose_size_stops_at_255_is_read_whole(size: int) -> None:
    """As fujielab-moshi-client writes it: one packet a page, one page a message, a checksum over all of it."""
    packet = bytes(range(1, 251)) * 4
    head = build_page(FIRST, 0, 7, 0, lacing_of([OpusHead(0, 24_000).packet()]), OpusHead(0, 24_000).packet())
    page = build_page(0, 960, 7, 1, bytes([min(size, 255)]), packet[:size])
    whole = build_page(0, 1920, 7, 2, bytes([10]), packet[:10])
    reader = PageReader()
    found = [item for message in (head, page, whole) for item in reader.push(message)]
    wanted = [packet[:10]] if size == 255 else [packet[:size], packet[:10]]  # 255 says that it goes on
    assert found[1:] == wanted and reader.bad_pages == 0
