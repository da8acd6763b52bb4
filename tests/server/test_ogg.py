"""Ogg pages: packets that are written are read again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ogg_streams import HEAD, SERIAL, continued, kept, likely_data, packet, packets_of, random_data, split, stream

from pplex.server import ogg
from pplex.server.ogg import (
    CONTINUED,
    FIRST,
    LAST,
    OpusHead,
    PageReader,
    PageWriter,
    build_page,
    lacing_of,
    packet_samples,
    tags_packet,
)


def slow_crc(data: bytes) -> int:
    """The checksum of RFC 3533 section 6, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


@given(random_data)
def test_checksum_equals_that_of_the_standard(data: bytes) -> None:
    assert ogg.checksum(data) == slow_crc(data).to_bytes(4, "little")


def test_headers_are_pages_0_and_1_and_audio_starts_at_2() -> None:
    headers = [ogg.HEADER.unpack_from(page) for page in stream(2)]
    assert [header[2] for header in headers] == [FIRST, 0, 0, 0]
    assert [header[3] for header in headers] == [0, 0, 3840, 7680]
    assert [header[5] for header in headers] == [0, 1, 2, 3]


def test_last_page_is_marked() -> None:
    writer = PageWriter(SERIAL)
    writer.page([HEAD.packet()])
    assert ogg.HEADER.unpack_from(writer.page([packet(0)], 960, last=True))[2] == LAST


def test_a_page_of_more_than_255_segments_raises() -> None:
    with pytest.raises(AssertionError, match="256 segments"):
        PageWriter(SERIAL).page([b""] * 256)


def test_reader_returns_head_and_audio_but_not_tags() -> None:
    reader = PageReader()
    assert reader.push(b"".join(stream(2))) == [HEAD, *packets_of(0, 1)]
    assert (reader.bad_pages, reader.skipped_bytes, kept(reader)) == (0, 0, 0)


@pytest.mark.parametrize("sizes", [[0], [255], [510], [254, 255, 256], [0, 0, 1, 255, 0], [2] * 60, [1275] * 40])
def test_packets_of_any_size_come_back(sizes: list[int]) -> None:
    packets = [packet(i, size) if size else b"" for i, size in enumerate(sizes)]
    assert PageReader().push(PageWriter(SERIAL).page([HEAD.packet()])) == [HEAD]
    assert PageReader().push(build_page(0, 0, SERIAL, 5, lacing_of(packets), b"".join(packets))) == packets


@given(st.lists(st.integers(0, 2000)), likely_data)
def test_any_division_gives_the_same_packets(cuts: list[int], garbage: bytes) -> None:
    pages = stream(3)
    data = b"".join([*pages[:3], garbage, *pages[3:]])
    whole, parts = PageReader(), PageReader()
    expected = whole.push(data)
    assert [item for part in split(data, cuts) for item in parts.push(part)] == expected
    assert (parts.bad_pages, parts.skipped_bytes) == (whole.bad_pages, whole.skipped_bytes)


def test_byte_by_byte_gives_the_same_packets() -> None:
    reader, data = PageReader(), b"".join(stream(2))
    assert [item for byte in data for item in reader.push(bytes([byte]))] == [HEAD, *packets_of(0, 1)]


@given(st.integers(0, 700))
def test_a_stream_joined_late_is_read_from_its_next_page(start: int) -> None:
    pages = stream(4)[2:]
    assert len(pages[0]) > 500
    missed = -(-start // len(pages[0]))
    assert PageReader().push(b"".join(pages)[start:]) == packets_of(*range(missed, 4))


def test_a_packet_over_several_pages_is_joined() -> None:
    pieces = [packet(0, 510), packet(1, 255), b"", packet(2, 300)]
    assert PageReader().push(b"".join(continued(9, pieces))) == [b"".join(pieces)]


def test_a_packet_that_begins_after_a_lost_one_is_joined() -> None:
    pages = [
        build_page(CONTINUED, 0, SERIAL, 4, b"\x78\xff", packet(0) + packet(1, 255)),
        build_page(CONTINUED, 0, SERIAL, 5, b"\x78", packet(2)),
    ]
    assert PageReader().push(b"".join(pages)) == [packet(1, 255) + packet(2)]


def test_page_numbers_wrap_around() -> None:
    first, second = (packet(i, 255) for i in range(2))
    pages = [
        build_page(0, 0, SERIAL, 0xFFFFFFFF, b"\xff", first),
        build_page(CONTINUED, 0, SERIAL, 0, b"\xff\0", second),
    ]
    assert PageReader().push(b"".join(pages)) == [first + second]


def test_long_tags_over_several_pages_are_not_audio() -> None:
    pages = continued(1, [tags_packet() + bytes(510 - len(tags_packet())), packet(1)])
    assert PageReader().push(stream(0)[0] + b"".join(pages)) == [HEAD]


def test_a_new_stream_replaces_the_old_one() -> None:
    old, new, reader = stream(3), stream(2, SERIAL + 1), PageReader()
    data = [*old[:3], *new[:2], old[3], new[2], old[4], new[3]]
    assert reader.push(b"".join(data)) == [HEAD, *packets_of(0), HEAD, *packets_of(0, 1)]
    assert reader.skipped_bytes == 0


def test_a_restarted_stream_with_the_same_number_is_new() -> None:
    assert PageReader().push(b"".join(stream(1) * 2)) == [HEAD, *packets_of(0)] * 2


def test_a_stream_of_another_codec_is_ignored() -> None:
    vorbis = PageWriter(5)
    first, second = vorbis.page([b"\1vorbis" + bytes(23)]), vorbis.page([packet(0)])
    pages = stream(1)
    assert PageReader().push(first + second) == []
    assert PageReader().push(b"".join([pages[0], first, second, *pages[1:]])) == [HEAD, *packets_of(0)]


def test_next_stream_is_read_after_an_end_even_without_its_headers() -> None:
    ended = build_page(LAST, 0, SERIAL, 2, lacing_of([packet(9)]), packet(9))
    data = b"".join([*stream(0), ended, *stream(1, SERIAL + 1)[2:]])
    assert PageReader().push(data) == [HEAD, packet(9), *packets_of(0)]


def test_head_fields_round_trip() -> None:
    for head in (HEAD, OpusHead(0, 48_000, 2), OpusHead(65535, 0)):
        assert OpusHead.parse(head.packet()) == head


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
    """fujielab-moshi-client writes such pages: one packet per page, one page per message, a checksum over all bytes."""
    packet = bytes(range(1, 251)) * 4
    head = build_page(FIRST, 0, 7, 0, lacing_of([OpusHead(0, 24_000).packet()]), OpusHead(0, 24_000).packet())
    page = build_page(0, 960, 7, 1, bytes([min(size, 255)]), packet[:size])
    whole = build_page(0, 1920, 7, 2, bytes([10]), packet[:10])
    reader = PageReader()
    found = [item for message in (head, page, whole) for item in reader.push(message)]
    wanted = [packet[:10]] if size == 255 else [packet[:size], packet[:10]]  # 255 means that the packet continues
    assert found[1:] == wanted and reader.bad_pages == 0
