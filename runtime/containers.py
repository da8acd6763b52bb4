"""Finds the recordings in the bytes of a sound file, so that libsndfile reads each to its end. Called by `runtime.audio`.

A recorder that is killed leaves a wrong size in the header, and so does a program that writes to a pipe. A file may have
several recordings: an Ogg file may be a chain, and `cat` joins any files. libsndfile stops at the end of the first one.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct


@dataclass(frozen=True)
class Part:
    """One recording for libsndfile, and a note for the user about its header, or "".

    `to_the_end`: all bytes are audio, so if the decoder leaves bytes, audio is missing.
    """

    data: bytes
    note: str = ""
    to_the_end: bool = False


def find_parts(data: bytes) -> list[Part]:
    """The recordings in the bytes of a file, in order. Bytes that are not audio become one part. Raises nothing."""
    parts: list[Part] = []
    while data:
        found, data = _first_parts(data)
        parts += found
    return parts


def is_trailer(tail: bytes) -> bool:
    """Whether the bytes after a recording are only zeros and tags, which programs add to the end of any file."""
    while tail := tail.lstrip(b"\0"):
        size = _tag_bytes(tail)
        if not size:
            return False
        tail = tail[size:]
    return True


def _tag_bytes(tail: bytes) -> int:
    """The size of the tag at the beginning of `tail`, 0 without one."""
    if tail.startswith(b"ID3") and len(tail) > 10:
        return 10 + sum((byte & 127) << shift for byte, shift in zip(tail[6:10], (21, 14, 7, 0), strict=True))
    if tail.startswith(b"APETAGEX") and len(tail) > 32:
        return 32 + int.from_bytes(tail[12:16], "little")
    if tail.startswith(b"LYRICSBEGIN"):
        return tail.find(b"LYRICS200") + 9
    return ID3V1_BYTES if tail.startswith(b"TAG") else 0


ID3V1_BYTES = 128
# An Ogg or FLAC stream, or a decoder, may leave up to so many bytes: part of a block, a stray line. They are ignored.
LEFT_BYTES = 4096


def _first_parts(data: bytes) -> tuple[list[Part], bytes]:
    """The recordings of the first container in `data`, and the bytes after it."""
    if data.startswith(_OGG_MARK):
        end = _ogg_end(data)
        return [Part(link) for link in _cut(data[:end], _ogg_starts(data))], data[end:]
    if _FLAC.match(data):
        # libsndfile reads ahead, so it would hide the next recording.
        another = _ANOTHER.search(data)
        own, rest = (data[: another.start()], data[another.start() :]) if another else (data, b"")
        return [Part(_without_id3v1(piece), "", True) for piece in _cut(own, _flac_starts(own))], rest
    layout = next((layout for layout in LAYOUTS if layout.magic.match(data)), None)
    found = layout.find(data) if layout else None
    if layout is None or found is None:
        return [Part(data, "", True)], b""
    return _sized(data, layout, *found)


# Ogg and FLAC have marks instead of sizes.

_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the mark, and the header of the first block of metadata
_OGG_MARK = b"OggS\x00"
_OGG_FIRST = re.compile(rb"OggS\x00[\x02\x06]")  # a page that begins a stream
_OGG_SEGMENTS_AT = 26
_ANOTHER = re.compile(rb"OggS\x00[\x02\x06]|(RIFF|RF64|RIFX)....WAVE|FORM....AIF[FC]|caff\x00\x01", re.DOTALL)


def _cut(data: bytes, starts: list[int]) -> list[bytes]:
    """Pieces that begin at `starts`; the first begins at 0."""
    return [data[start:end] for start, end in pairwise([0, *starts[1:], len(data)])]


def _without_id3v1(data: bytes) -> bytes:
    return data[:-ID3V1_BYTES] if data[-ID3V1_BYTES:].startswith(b"TAG") else data


def _flac_starts(data: bytes) -> list[int]:
    return [match.start() for match in _FLAC.finditer(data)]


def _ogg_starts(data: bytes) -> list[int]:
    """Starts of the links of a chain (RFC 3533, section 4). Streams that belong together begin on successive pages:

    first page of A, first page of B, pages of A and B, ..., first page of C, pages of C, ...
    ^ link                                                   ^ link
    """
    starts, next_page = [], -1
    for match in _OGG_FIRST.finditer(data):
        if match.start() != next_page:
            starts.append(match.start())
        next_page = _page_end(data, match.start())
    return starts


def _ogg_end(data: bytes) -> int:
    """End of the last page, if many bytes other than a tag follow it; else the end of the data."""
    end = _page_end(data, data.rfind(_OGG_MARK))
    is_more = len(data) - end > LEFT_BYTES and not is_trailer(data[end:])
    return end if is_more or _is_recording(data[end:]) else len(data)


def _page_end(data: bytes, start: int) -> int:
    """End of the page at `start`, from the sizes of its segments."""
    sizes_at = start + _OGG_SEGMENTS_AT + 1
    sizes = data[sizes_at : sizes_at + data[sizes_at - 1]] if sizes_at <= len(data) else b""
    return sizes_at + len(sizes) + sum(sizes)


# In the other formats, samples follow a header with their size.


_CHUNK_NAME = re.compile(rb"[ -~]{4}(.{12})?", re.DOTALL)
_CHUNKS_AFTER = {
    b"LIST",
    b"list",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"JUNK",
    b"junk",
    b"PAD ",
    b"FLLR",
    b"cue ",
    b"smpl",
}


@dataclass(frozen=True)
class Chunks:
    """Chunks with an id and a size; one has the samples: WAV, RF64, AIFF, W64, CAF. Files begin with `magic`."""

    magic: re.Pattern[bytes]
    first: int  # start of the first chunk
    header: Struct  # of a chunk: id, size
    samples: bytes  # id of the chunk of samples
    file_size: tuple[Struct, int, int] | None = (
        None  # of the whole file: its format, its place, and the bytes it does not count
    )
    lead: int = 0  # bytes before the samples in their chunk
    align: int = 2
    counts_header: bool = False  # a chunk's size counts its header
    keeps_tail: bool = True  # libsndfile accepts bytes after the samples

    def padded(self, at: int) -> int:
        """Start of the chunk after one that ends at `at`."""
        return -(-at // self.align) * self.align

    def find(self, data: bytes) -> tuple[int, int] | None:
        """Start of the samples and their size in the header; None if no chunk holds samples."""
        at = self.first
        while at + self.header.size <= len(data):
            name, size = self._chunk(data, at)
            at += self.header.size
            if name == self.samples:
                is_64_bit = data[:4] == b"RF64" and size == 0xFFFFFFFF and data[12:16] == b"ds64"
                return at, _DS64.unpack_from(data, _DS64_AT)[1] if is_64_bit else size
            at = self.padded(at + size)
        return None

    def resized(self, data: bytes, start: int, end: int) -> bytes:
        """The file up to `end`, where its samples end, with the sizes in the header corrected."""
        head, size = bytearray(data[:start]), end - start
        at = start - self.header.size
        counted = size + (self.header.size if self.counts_header else 0)
        self.header.pack_into(head, at, self.samples, min(counted, _largest(self.header.size - len(self.samples))))
        if self.file_size is not None:
            field, field_at, less = self.file_size
            field.pack_into(head, field_at, min(end - less, _largest(field.size)))
        if head[:4] == b"RF64" and head[12:16] == b"ds64":
            _DS64.pack_into(head, _DS64_AT, end - 8, size)
        return bytes(head) + data[start:end]

    def is_chunks(self, tail: bytes) -> bool:
        """Whether `tail` is a chain of chunks up to the end of the file. A last chunk of a usual kind may be cut off."""
        at = 0
        while at + self.header.size <= len(tail):
            name, size = self._chunk(tail, at)
            after = at + self.header.size + size
            if not _CHUNK_NAME.fullmatch(name):
                return at > 0 and is_trailer(tail[at:])
            if after >= len(tail):
                return after <= self.padded(len(tail)) or name[:4] in _CHUNKS_AFTER
            at = self.padded(after)
        return at > 0 and is_trailer(tail[at:])

    def _chunk(self, data: bytes, at: int) -> tuple[bytes, int]:
        name, size = self.header.unpack_from(data, at)
        return name, max(0, size - self.header.size) if self.counts_header else size


@dataclass(frozen=True)
class Au:
    """AU: a header with the start and the size of the samples. The methods are those of `Chunks`."""

    magic: re.Pattern[bytes]
    header: Struct
    lead: int = 0
    keeps_tail: bool = True

    def padded(self, at: int) -> int:
        return at

    def find(self, data: bytes) -> tuple[int, int] | None:
        start, size = self.header.unpack_from(data.ljust(12, b"\0"), 4)
        return (start, size) if 24 <= start <= len(data) else None

    def resized(self, data: bytes, start: int, end: int) -> bytes:
        head = bytearray(data[:start])
        self.header.pack_into(head, 4, start, min(end - start, 0xFFFFFFFF))
        return bytes(head) + data[start:end]

    def is_chunks(self, tail: bytes) -> bool:
        return False  # AU holds samples only


def _largest(nbytes: int) -> int:
    """The largest number in a field of `nbytes` bytes: it means an unknown size."""
    return (1 << 8 * nbytes) - 1


Layout = Chunks | Au
_DS64, _DS64_AT = Struct("<QQ"), 20  # RF64's sizes of the file and of the samples
_U32, _U32_BIG = Struct("<I"), Struct(">I")
_W64_FILE, _W64 = (
    rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00",
    b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",
)
LAYOUTS: tuple[Layout, ...] = (
    Chunks(re.compile(rb"(RIFF|RF64)....WAVE", re.DOTALL), 12, Struct("<4sI"), b"data", (_U32, 4, 8)),
    Chunks(re.compile(rb"RIFX....WAVE", re.DOTALL), 12, Struct(">4sI"), b"data", (_U32_BIG, 4, 8)),
    Chunks(re.compile(rb"FORM....AIF[FC]", re.DOTALL), 12, Struct(">4sI"), b"SSND", (_U32_BIG, 4, 8), lead=8),
    Chunks(re.compile(rb"caff\x00\x01"), 8, Struct(">4sQ"), b"data", lead=4, align=1),
    Chunks(
        re.compile(_W64_FILE + rb".{8}wave", re.DOTALL),
        first=40,
        header=Struct("<16sQ"),
        samples=b"data" + _W64,
        file_size=(Struct("<Q"), 16, 0),
        align=8,
        counts_header=True,
        keeps_tail=False,
    ),
    Au(re.compile(rb"\.snd"), Struct(">II")),
    Au(re.compile(rb"dns\."), Struct("<II")),
)


def _sized(data: bytes, layout: Layout, start: int, claimed: int) -> tuple[list[Part], bytes]:
    """The recording of a container whose header gives the size of its samples, and the bytes after it."""
    end = start + claimed
    if end == len(data):
        return [Part(data, "", True)], b""
    if end > len(data):
        return [Part(layout.resized(data, start, len(data)), "", True)], b""
    says_nothing = claimed <= layout.lead
    for tail_at in (layout.padded(end), end):  # some programs do not write the padding
        if any(data[end:tail_at]):  # padding is zeros: these are samples, and the size is wrong
            continue
        tail = data[tail_at:]
        if _is_recording(tail):
            return [Part(layout.resized(data, start, end), "", True)], tail
        if layout.is_chunks(tail) or (is_trailer(tail) and not (says_nothing and any(data[start:]))):
            return [Part(data if layout.keeps_tail else layout.resized(data, start, end))], b""
    note = f"its header says {claimed:,} bytes of samples, but it has {len(data) - start:,}: all of these are used."
    return [Part(layout.resized(data, start, len(data)), "" if says_nothing else note, True)], b""


def _is_recording(data: bytes) -> bool:
    return data.startswith(_OGG_MARK) or any(
        magic.match(data) for magic in (_FLAC, *(known.magic for known in LAYOUTS))
    )
