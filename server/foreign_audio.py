"""Names containers and codecs by their first bytes.

Called by the receivers, so that a client that sends WebM as Opus, or Ogg as raw samples, gets an error at once.
"""

# Position of the mark, the mark, and the name. A mark has at least four bytes: raw samples can begin with any two or three.
_CONTAINERS = (
    (0, b"OggS", "Ogg"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (0, b"RIFF", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"fLaC", "FLAC"),
    (4, b"ftyp", "MP4"),
    (0, b"ID3\x03", "MP3"),
    (0, b"ID3\x04", "MP3"),
    (0, b"caff", "CAF"),
    (0, b"FORM", "AIFF"),
    (0, b".snd", "AU"),
    (0, b"#!AMR", "AMR"),
)
_STARTS = frozenset(
    (at, mark[:4]) for at, mark, _ in _CONTAINERS
)  # for a quick look: nearly all audio has none of them
LONGEST_MARK = 8  # bytes from the beginning that are enough for any mark
_CODECS = {  # of an Ogg stream, by its first packet
    b"OpusHead": "Opus of more than two channels, or of a later version",
    b"\x01vorbis": "Vorbis",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"\x80theora": "Theora",
}


def container_of(beginning: bytes) -> str | None:
    """The name of the container that begins with these bytes; None if it is unknown."""
    if (0, beginning[:4]) not in _STARTS and (4, beginning[4:8]) not in _STARTS:
        return None
    return next((name for at, mark, name in _CONTAINERS if beginning.startswith(mark, at)), None)


def codec_of(first_packet: bytes) -> str:
    """The name of the codec of an Ogg stream, by its first packet."""
    return next((name for mark, name in _CODECS.items() if first_packet.startswith(mark)), "an unknown codec")
