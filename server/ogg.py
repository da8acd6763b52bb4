"""Writes and reads pages of an Ogg Opus stream without decoding packets. Called by `server.opus` and `server.speakers`.

Sources: RFC 3533 (pages), RFC 7845 (Opus in them), RFC 6716 section 3 (the duration of a packet).
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

HEADER = struct.Struct("<4sBBQII4sB")  # "OggS", version, flags, granule position, serial, sequence, CRC, segments
CRC_AT = 22
SEGMENTS_AT = 26
MARK = b"OggS\0"  # how every page begins
CONTINUED, FIRST, LAST = 1, 2, 4  # flags: starts within a packet, begins the stream, ends it
MAX_PAGE_BYTES = HEADER.size + 255 + 255 * 255
MAX_PACKET_BYTES = 61_440  # 120 ms at the highest rate, RFC 7845 section 6
MAX_PACKET_SAMPLES = 5760  # 120 ms at 48 kHz

HEAD = struct.Struct("<8sBBHIhB")  # "OpusHead", version, channels, pre-skip, sample rate, gain, channel mapping
HEAD_MAGIC, TAGS_MAGIC = b"OpusHead", b"OpusTags"
VENDOR = b"pplex-export"

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FRAME_SAMPLES = (  # at 48 kHz, by the TOC byte's upper five bits
    *(480, 960, 1920, 2880) * 3,  # SILK
    *(480, 960) * 2,  # hybrid
    *(120, 240, 480, 960) * 4,  # CELT
)


def packet_samples(packet: bytes) -> int:
    """Samples at 48 kHz by the packet's header. 0 if it is not a packet: empty, no frames, more than 120 ms."""
    if not packet:
        return 0
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[packet[0] & 3]
    samples = frames * _FRAME_SAMPLES[packet[0] >> 3]
    return samples if samples <= MAX_PACKET_SAMPLES else 0


@dataclass(frozen=True)
class OpusHead:
    """The first packet of a stream. `pre_skip` is in samples at 48 kHz, for any `sample_rate_hz` of the input."""

    pre_skip: int
    sample_rate_hz: int
    channels: int = 1

    def packet(self) -> bytes:
        """The bytes of the packet, without a gain."""
        return HEAD.pack(HEAD_MAGIC, 1, self.channels, self.pre_skip, self.sample_rate_hz, 0, 0)

    @classmethod
    def parse(cls, packet: bytes) -> Self | None:
        """Parse a packet; None if it is not a head, has more than two channels, or a later version."""
        if len(packet) < HEAD.size or not packet.startswith(HEAD_MAGIC):
            return None
        _, version, channels, pre_skip, rate, _, mapping = HEAD.unpack_from(packet)
        if version > 15 or mapping or channels not in (1, 2):
            return None
        return cls(pre_skip, rate, channels)


def tags_packet() -> bytes:
    """The second packet of a stream: the writer's name, and no tags."""
    return TAGS_MAGIC + struct.pack("<I", len(VENDOR)) + VENDOR + struct.pack("<I", 0)


def checksum(page: bytes) -> bytes:
    """The four bytes of a page's CRC; in `page` they must be zero.

    Ogg's polynomial is zlib's with the bits in the opposite order, and without inversion before and after.
    """
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED)


def build_page(flags: int, granule: int, serial: int, sequence: int, lacing: bytes, body: bytes) -> bytes:
    """A whole page. `lacing`: the sizes of its segments. A segment below 255 ends a packet."""
    header = HEADER.pack(b"OggS", 0, flags, granule, serial, sequence, bytes(4), len(lacing))
    page = header + lacing + body
    return page[:CRC_AT] + checksum(page) + page[CRC_AT + 4 :]


def lacing_of(packets: Sequence[bytes]) -> bytes:
    """The segment sizes of whole packets. A packet of 255 bytes, or a multiple, ends with an empty segment."""
    return b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)


class PageWriter:
    """Numbers the pages of one stream and counts its samples."""

    def __init__(self, serial: int):
        self._serial = serial
        self._sequence = 0
        self._granule = 0  # samples at 48 kHz up to the last page's end

    def page(self, packets: Sequence[bytes], samples: int = 0, last: bool = False) -> bytes:
        """The next page, with whole packets of `samples` in total at 48 kHz; 0 for the two headers."""
        lacing = lacing_of(packets)
        assert len(lacing) <= 255, f"{len(lacing)} segments do not fit a page"
        flags = (0 if self._sequence else FIRST) | (LAST if last else 0)
        self._granule += samples
        page = build_page(flags, self._granule, self._serial, self._sequence, lacing, b"".join(packets))
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return page


class PageReader:
    """Packets of the newest Opus stream in a sequence of bytes, which may begin anywhere, and be damaged or incomplete.

    A page begins with a mark, and its lacing gives its size. It is good if its CRC is correct:

        OggS... page ...OggS... page ...xxxxxOggS...
                        ^ a mark before the page's claimed end: its lacing is damaged, or the mark is in garbage

    So a damaged size loses one page, not the 64 KiB that it may claim, and no byte is checked twice. (The five bytes of a
    mark occur in audio once in years.) Between calls it keeps an unfinished page and an unfinished packet: under 128 KiB.
    """

    def __init__(self) -> None:
        self.good_pages = 0  # of any stream
        self.bad_pages = 0  # marks without a good page
        self.skipped_bytes = 0  # outside good pages
        self._bytes = bytearray()  # unread bytes: from a mark on, or too few to contain a mark
        self._searched = 0  # the first unread page has no other mark up to here
        self._serial: int | None = None  # of the stream that is read
        self._sequence = 0  # of its last page
        self._seen_first = False  # until a stream's beginning was seen, any stream is read
        self._unfinished: bytes | None = None  # beginning of a packet that continues in the next page; or None
        self._other: bytes | None = None  # the first packet of a new stream that is not Opus, while no stream is read
        # The same, after that stream's audio has arrived and no stream of Opus has begun.
        self.unplayable: bytes | None = None

    def push(self, data: bytes) -> list[bytes | OpusHead]:
        """Add bytes; returns the audio packets that they complete and heads of new streams, in order. Raises nothing."""
        self._bytes += _with_true_size(data)
        found: list[bytes | OpusHead] = []
        for page in self._good_pages():
            self.good_pages += 1
            found += self._read(page)
        return found

    def _good_pages(self) -> list[bytes]:
        """Remove complete pages, and the bytes before and between them, from the unread bytes; returns the good pages."""
        data, start, pages = self._bytes, 0, []
        while True:
            mark = data.find(MARK, start)
            if mark < 0:
                mark = max(start, len(data) - len(MARK) + 1)  # a mark may have begun at the end
            self.skipped_bytes += mark - start
            if mark > start:
                start, self._searched = mark, 0
            if len(data) - start < len(MARK):
                break
            size = _claimed_bytes(data, start)
            inner = data.find(MARK, start + max(1, self._searched), start + size)
            if inner < 0 and start + size > len(data):
                self._searched = len(data) - start - len(MARK) + 1
                break
            self._searched = 0
            page = bytes(data[start : start + size]) if inner < 0 else b""
            if page and page[CRC_AT : CRC_AT + 4] == checksum(page[:CRC_AT] + bytes(4) + page[CRC_AT + 4 :]):
                pages.append(page)
                start += size
            else:
                self.bad_pages += 1
                after = inner if inner >= 0 else start + size - len(MARK) + 1  # a mark may begin in its last bytes
                self.skipped_bytes += after - start
                start = after
        del data[:start]
        return pages

    def _read(self, page: bytes) -> Sequence[bytes | OpusHead]:
        """The packets that a good page completes, if it belongs to the stream that is read."""
        _, _, flags, _, serial, sequence, _, segments = HEADER.unpack_from(page)
        start = HEADER.size + segments
        if flags & FIRST:
            return self._begin(serial, sequence, page[start:])
        if self._serial is None and not self._seen_first:
            self._serial = serial
        if self._serial is None:  # every stream of a group begins before the first page of audio
            self.unplayable = self._other
        if serial != self._serial:
            return []
        if sequence != (self._sequence + 1) & 0xFFFFFFFF:
            self._unfinished = None
        self._sequence = sequence
        if flags & LAST:
            self._serial, self._seen_first = None, False
        return self._packets(page, bool(flags & CONTINUED))

    def _begin(self, serial: int, sequence: int, body: bytes) -> list[OpusHead]:
        """A stream begins. If it is Opus, it is read from here on; otherwise it is ignored."""
        self._seen_first = True
        head = OpusHead.parse(body)
        if head is None:
            self._serial = None if serial == self._serial else self._serial
            self._other = body
            return []
        self._serial, self._sequence, self._unfinished = serial, sequence, None
        self._other = None
        return [head]

    def _packets(self, page: bytes, continued: bool) -> list[bytes]:
        """The audio packets that end in a page. The first packet is joined to its beginning in earlier pages."""
        start = end = HEADER.size + page[SEGMENTS_AT]
        lacing = page[HEADER.size : start]
        pieces = []
        for size in lacing:
            end += size
            if size < 255:
                pieces.append(page[start:end])
                start = end
        pieces.append(page[start:end])  # beginning of a packet that continues in the next page, or empty
        goes_on = lacing[-1] == 255 if lacing else continued
        if continued and self._unfinished is not None:
            pieces[0] = self._unfinished + pieces[0]
        elif continued:  # its beginning is lost
            goes_on = goes_on and len(pieces) > 1
            del pieces[0]
        self._unfinished = pieces[-1] if goes_on and len(pieces[-1]) <= MAX_PACKET_BYTES else None
        return [
            piece
            for piece in pieces[:-1]
            if len(piece) <= MAX_PACKET_BYTES and not piece.startswith((HEAD_MAGIC, TAGS_MAGIC))
        ]


def _with_true_size(message: bytes) -> bytes:
    """Correct the size in a message that is one page with one packet above 255 bytes.

    fujielab-moshi-client 0.1.2 writes 255 as the size of every longer packet. Its checksum covers the whole message.
    """
    body_at = HEADER.size + 1
    if message[:5] != MARK or message[SEGMENTS_AT:body_at] != b"\1\xff" or len(message) <= body_at + 255:
        return message
    if message[CRC_AT : CRC_AT + 4] != checksum(message[:CRC_AT] + bytes(4) + message[CRC_AT + 4 :]):
        return message
    _, _, flags, granule, serial, sequence, _, _ = HEADER.unpack_from(message)
    packet = message[body_at:]
    return build_page(flags, granule, serial, sequence, lacing_of([packet]), packet)


def _claimed_bytes(data: bytearray, start: int) -> int:
    """The length of the page at `start` by its header; a lower bound if the header is incomplete."""
    there = len(data) - start
    if there < HEADER.size:
        return HEADER.size
    size = HEADER.size + data[start + SEGMENTS_AT]
    return size if there < size else size + sum(data[start + HEADER.size : start + size])
