"""Converts Opus in Ogg to samples and back, for one connection. libopus does the coding, through PyAV, without the GIL.

Made by `server.formats`. Receivers run in the hearing thread, senders in the speech thread. A frame of 80 ms takes 270 us to
send and 150 us to receive (one x86-64 core, PyAV 18.1).
"""

import random

import av
import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.mixing import StreamMix
from pplex.server.foreign_audio import LONGEST_MARK, codec_of, container_of
from pplex.server.logs import LOGGER
from pplex.server.ogg import OpusHead, PageReader, PageWriter, packet_samples, tags_packet
from pplex.server.wire import FRAME_SIZE, Close, ProtocolError, Received

PACKET_SAMPLES = 480  # 20 ms: a client sends short packets, because it may stop after any packet
BITS_PER_SECOND = 48_000
STEREO = 4  # the bit of a packet's first byte, RFC 6716 section 3.1
UP = 2  # samples at Opus's own 48 kHz for each of ours
PAGELESS_BYTES = 32768  # several seconds of Opus: a stream that has no Ogg page in so many bytes is something else


Pcm16 = npt.NDArray[np.int16]


class OpusReceiver:
    """Converts a client's Ogg Opus stream to mono samples at 24 kHz, for any content and any division into messages.

    Like the original server, it keeps the samples that the head's pre-skip says to discard. Clients claim 80 ms, but their
    real delay is 6 ms. If 80 ms were discarded, a client would miss the answer to one frame.
    """

    def __init__(self) -> None:
        self.pages = PageReader()
        self.bad_packets = 0  # replaced by silence of the length they claim
        self._bad_payloads = 0  # payloads with bytes outside pages
        self._beginning = b""  # the first bytes of the stream
        self.has_cancelled = False  # the two channels cancelled out, so the louder one is heard
        self._decoder = _decoder("mono")
        self._mix: StreamMix | None = None  # exists since the first stereo packet
        self._is_new = False  # a stream has begun since the last packet that was decoded
        self._decimator = HalfBandDecimator()

    @property
    def bad(self) -> int:
        """The number of damaged pages and packets, and of payloads with bytes outside pages."""
        return self.pages.bad_pages + self.bad_packets + self._bad_payloads

    def push(self, payload: bytes, limit: int) -> Received:
        """Decode the newest packets, at most `limit` samples in total. Earlier packets are skipped by their headers.

        Raises ProtocolError if the stream cannot be Ogg Opus.
        """
        parts = self._packets(payload)
        bad_packets = self.bad_packets
        sizes = [0 if isinstance(part, OpusHead) else packet_samples(part) for part in parts]  # at 48 kHz
        left, skipped = sum(sizes), 0
        blocks: list[Pcm16] = []
        for part, samples in zip(parts, sizes, strict=True):
            if isinstance(part, OpusHead):
                self._is_new = True
            elif not samples:
                self.bad_packets += 1
            elif left > limit * UP:
                skipped += samples
            else:
                blocks.append(self._decode(part, samples))
            left -= samples
        packets = sum(isinstance(part, bytes) for part in parts)
        is_audio = packets > self.bad_packets - bad_packets
        return Received(self._decimator.push(blocks), skipped // UP, is_audio)

    def _packets(self, payload: bytes) -> list[bytes | OpusHead]:
        """The packets that a payload completes. Raises ProtocolError if the stream cannot be Ogg Opus."""
        if len(self._beginning) < LONGEST_MARK:
            self._beginning += payload[:LONGEST_MARK]
        bad_pages, skipped_bytes = self.pages.bad_pages, self.pages.skipped_bytes
        parts = self.pages.push(payload)
        if self.pages.skipped_bytes > skipped_bytes and self.pages.bad_pages == bad_pages:
            self._bad_payloads += 1
        container = None if self.pages.good_pages else container_of(self._beginning)
        if container not in (None, "Ogg"):
            raise not_opus(f"is {container}")
        if not self.pages.good_pages and self.pages.skipped_bytes > PAGELESS_BYTES:
            raise not_opus(f"has no Ogg page in {self.pages.skipped_bytes:,} bytes")
        if self.pages.unplayable is not None:
            raise not_opus(f"is Ogg with {codec_of(self.pages.unplayable)}")
        return parts

    def _decode(self, packet: bytes, samples: int) -> Pcm16:
        """`samples` at 48 kHz, silent if the packet is damaged. (An empty packet would end PyAV's stream.)"""
        if packet[0] & STEREO and self._mix is None:
            self._decoder, self._mix = _decoder("stereo"), StreamMix(SAMPLE_RATE_HZ * UP)
        if self._is_new:  # here and not at the head: a message can hold a thousand heads
            self._decoder.flush_buffers()
            self._is_new = False
        try:
            frames = self._decoder.decode(av.Packet(packet))
        except av.error.InvalidDataError:
            frames = []
        except av.error.FFmpegError:
            frames, self._decoder = [], _decoder("stereo" if self._mix else "mono")
        if len(frames) == 1 and frames[0].samples == samples:
            return self._mono(memoryview(frames[0].planes[0]), samples)
        self.bad_packets += 1
        return np.zeros(samples, np.int16)

    def _mono(self, plane: memoryview, samples: int) -> Pcm16:
        """A decoded packet as one channel."""
        if self._mix is None:
            return np.frombuffer(plane, np.int16, samples)
        stereo = np.frombuffer(plane, np.int16, 2 * samples).reshape(samples, 2)
        mixed = self._mix.push(stereo.astype(np.float32))
        if self._mix.cancels and not self.has_cancelled:
            self.has_cancelled = True
            LOGGER.warning("a client's stereo channels cancel out: the louder channel is heard")
        return np.rint(mixed).astype(np.int16)


class PacketEncoder:
    """Encodes samples as packets, for speech with the least delay: 2.5 ms, and no packet is held back.

    `packet_samples` at 24 kHz: 480 (20 ms) or 1,920 (80 ms, four frames of 20 ms in one packet), with the same delay.
    """

    def __init__(self, packet_samples: int = PACKET_SAMPLES) -> None:
        self.packet_samples = packet_samples
        self._encoder = av.CodecContext.create("libopus", "w")
        self._encoder.sample_rate, self._encoder.layout, self._encoder.format = SAMPLE_RATE_HZ, "mono", "flt"
        self._encoder.bit_rate = BITS_PER_SECOND
        duration_ms = packet_samples * 1000 // SAMPLE_RATE_HZ
        self._encoder.options = {
            "application": "lowdelay",
            "compression_level": "5",
            "frame_duration": str(duration_ms),
        }
        self._encoder.open()
        own = OpusHead.parse(self._encoder.extradata or b"")
        assert own is not None, "libopus wrote no head"
        self.head = OpusHead(own.pre_skip, SAMPLE_RATE_HZ)

    def push(self, pcm: Pcm) -> list[bytes]:
        """The packets of [n * packet_samples] samples. Samples are clipped to [-1, 1], and NaN becomes silence."""
        packets, rest = divmod(len(pcm), self.packet_samples)
        assert packets and not rest, f"{len(pcm)} samples are not whole packets"
        samples = np.clip(pcm, -1, 1)
        samples[np.isnan(samples)] = 0
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        encoded = [bytes(packet) for packet in self._encoder.encode(frame)]
        assert len(encoded) == packets, f"the encoder gave {len(encoded)} packets for {packets}"
        return encoded


class PacketPages:
    """Makes the pages of one stream from packets."""

    def __init__(self, head: OpusHead, serial: int | None = None):
        self._head, self._pages = head, PageWriter(random.getrandbits(32) if serial is None else serial)

    def headers(self) -> list[bytes]:
        """The first two pages."""
        return [self._pages.page([self._head.packet()]), self._pages.page([tags_packet()])]

    def page(self, packets: list[bytes]) -> bytes:
        """The next page."""
        return self._pages.page(packets, sum(packet_samples(packet) for packet in packets))


class OpusSender:
    """Encodes frames of 80 ms as pages of one Ogg Opus stream. Each frame gives its pages at once.

    A page holds one packet, because some clients decode only the first packet of a page.
    """

    def __init__(self) -> None:
        self._encoder = PacketEncoder(FRAME_SIZE)
        self._pages = PacketPages(self._encoder.head)
        self._headers = self._pages.headers()

    def frame(self, pcm: Pcm) -> list[bytes]:
        """The pages of one frame [1920]: one page. The first frame has the two header pages before it."""
        assert pcm.shape == (FRAME_SIZE,), f"a frame has {FRAME_SIZE} samples, not {pcm.shape}"
        headers, self._headers = self._headers, []
        return [*headers, self._pages.page(self._encoder.push(pcm))]


class HalfBandDecimator:
    """48 kHz to 24 kHz: a half-band filter, flat to 10.5 kHz and 70 dB down from 13.5 kHz, with a delay of 0.8 ms.

    Every other tap is zero, except the middle one, which is a half:

        output n   h0  0 h1  0 ... h19 1/2 h20 ...  0 h39      79 taps on samples 2n, ..., 2n + 78

    So each output is a dot product of 40 numbers, the same for any division of the input.
    """

    TAPS = 79
    MIDDLE = TAPS // 2

    def __init__(self) -> None:
        window = np.kaiser(self.TAPS, 7.0)[::2]
        taps = window * np.sinc((np.arange(0, self.TAPS, 2) - self.MIDDLE) / 2)
        scale = 1 / 32768  # of 16-bit samples
        self._taps = (taps / taps.sum() / 2 * scale).astype(np.float32)  # [40]
        self._middle = np.float32(scale / 2)
        self._tail = np.zeros(self.TAPS - 1, np.float32)

    def push(self, blocks: list[Pcm16]) -> Pcm:
        """Half as many samples as `blocks` hold; they must hold an even number."""
        if not blocks:
            return np.zeros(0, np.float32)
        samples = np.concatenate([self._tail, *blocks], dtype=np.float32)  # [78 + 2n]
        self._tail = samples[-self._tail.size :].copy()
        pcm = np.correlate(samples[::2], self._taps)  # [n]
        pcm += self._middle * samples[self.MIDDLE :: 2][: pcm.size]
        return np.clip(pcm, -1, 1, out=pcm)


def not_opus(what_it_is: str) -> ProtocolError:
    """The refusal of a stream that is something else."""
    return ProtocolError(
        Close.INVALID,
        f"The audio {what_it_is}, but must be Opus in Ogg pages. Send that, or connect with audio=s16 and send samples.",
    )


def _decoder(layout: str) -> av.AudioCodecContext:
    """An open libopus decoder at 48 kHz, with 16-bit output. With a stereo layout, mono packets become stereo, too."""
    decoder = av.CodecContext.create("libopus", "r")
    decoder.layout = layout
    decoder.sample_rate = SAMPLE_RATE_HZ * UP
    decoder.open()
    return decoder
