"""Streams of Opus for tests, and their quality after decoding."""

import av
import numpy as np

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.ogg import OpusHead, PageWriter, tags_packet
from pplex.server.opus import OpusReceiver, OpusSender, PacketEncoder, Pcm
from pplex.server.wire import FRAME_SIZE

NO_LIMIT = 10**9
SERIAL = 77


def speech(frames: int) -> Pcm:
    """A voice's harmonics with a syllable four times a second, and some noise: [frames * 1920]."""
    t = np.arange(frames * FRAME_SIZE) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * t)) / SAMPLE_RATE_HZ
    voice = sum(np.sin(k * phase) / k for k in range(1, 25))
    noise = np.random.default_rng(1).standard_normal(t.size)
    return (0.15 * (voice + 0.02 * noise) * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * t))).astype(np.float32)


def sent(frames: int = 8) -> list[bytes]:
    """Pages of `frames` frames of speech, the two headers first."""
    sender = OpusSender()
    return [page for pcm in speech(frames).reshape(frames, -1) for page in sender.frame(pcm)]


def short_packets(frames: int) -> list[bytes]:
    """`frames` frames of speech in packets of 20 ms, as clients send them."""
    return PacketEncoder().push(speech(frames))


def heard(data: bytes) -> Pcm:
    return OpusReceiver().push(data, NO_LIMIT).pcm


def pages_of(packets: list[bytes], head: OpusHead | None = None, each: int = 1) -> bytes:
    """Packets as a stream, `each` of them in a page; without `head` the stream starts in its middle."""
    writer = PageWriter(SERIAL)
    headers = [writer.page([(head or OpusHead(0, 0)).packet()]), writer.page([tags_packet()])]
    return b"".join(
        (headers if head else []) + [writer.page(packets[i : i + each], 0) for i in range(0, len(packets), each)]
    )


def encoded(pcm: Pcm, layout: str, **options: str) -> list[bytes]:
    """Packets of interleaved samples at 48 kHz."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout, encoder.bit_rate = 48_000, "flt", layout, 96_000
    encoder.options = options
    frame = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout=layout)
    frame.sample_rate = 48_000
    return [bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)] if packet.size]


def delay_and_snr(original: Pcm, coded: Pcm, longest: int = 600) -> tuple[int, float]:
    """The delay of `coded` in samples, and its signal-to-noise ratio in dB."""
    size = min(original.size, coded.size) - longest
    late = int(np.argmax([original[:size] @ coded[d : d + size] for d in range(longest)]))
    difference = coded[late : late + size] - original[:size]
    return late, 10 * np.log10(np.sum(original[:size] ** 2) / np.sum(difference**2))
