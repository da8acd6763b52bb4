"""Damaged Opus, too much of it, and other formats: nothing that a client sends stops the decoder."""

import random
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opus_streams import NO_LIMIT, SERIAL, delay_and_snr, heard, pages_of, sent, short_packets, speech

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server import opus
from pplex.server.ogg import PageWriter, packet_samples
from pplex.server.opus import OpusReceiver
from pplex.server.wire import FRAME_SIZE, ProtocolError


def test_a_damaged_page_is_skipped_and_the_rest_decoded() -> None:
    pages = sent(25)
    pages[4] = pages[4][:200] + b"damaged" + pages[4][207:]
    receiver = OpusReceiver()
    coded = receiver.push(b"".join(pages), NO_LIMIT).pcm
    assert coded.size == 24 * FRAME_SIZE
    assert receiver.pages.bad_pages == 1
    assert delay_and_snr(speech(25)[4 * FRAME_SIZE :], coded[3 * FRAME_SIZE :])[1] > 12


def bomb() -> bytes:
    """3.3 hours in 311 kB: packets of 120 ms in two bytes each."""
    return pages_of([b"\xff\x06"] * 99_000, each=255)


def test_a_decompression_bomb_is_skipped_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = [0], OpusReceiver._decode

    def count(self: OpusReceiver, packet: bytes, samples: int) -> opus.Pcm16:
        decoded[0] += 1
        return decode(self, packet, samples)

    monkeypatch.setattr(OpusReceiver, "_decode", count)
    data = bomb()
    assert len(data) < 311_000
    received = OpusReceiver().push(data, 2 * SAMPLE_RATE_HZ)
    assert decoded == [16]
    assert received.pcm.size == 16 * 2880
    assert received.skipped == (99_000 - 16) * 2880


@pytest.mark.parametrize("limit", [0, 479, 480, 481, 4000, 10**6])
def test_the_newest_packets_within_the_limit_are_decoded(limit: int) -> None:
    data = pages_of(short_packets(4))
    received = OpusReceiver().push(data, limit)
    assert received.pcm.size == min(limit // 480 * 480, 4 * FRAME_SIZE)
    assert received.skipped == 4 * FRAME_SIZE - received.pcm.size


def test_a_refused_packet_becomes_silence_and_is_counted() -> None:
    packets = short_packets(4)
    packets[5] = b"\xff\x06"  # claims six frames, without their sizes or equal parts
    packets[6:6] = [b"", b"\xff", b"\x83\x31"]
    packets[9] = b"\x79\x01\x02"  # two frames in an odd number of bytes
    packets[10] = b"\xfa\xff"
    receiver = OpusReceiver()
    coded = receiver.push(pages_of(packets), NO_LIMIT).pcm
    assert receiver.bad_packets >= 4
    assert coded.size == sum(packet_samples(packet) for packet in packets) // 2
    whole = heard(pages_of(short_packets(4)))
    assert np.abs(coded[-2000:] - whole[-2000:]).max() < 0.1  # the decoder has recovered


def test_a_failed_decoder_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, data = OpusReceiver(), b"".join(sent(2)[2:])
    receiver._decoder.decode(None)  # it now rejects every packet, because its stream has ended
    assert receiver.push(data, NO_LIMIT).pcm.size == 2 * FRAME_SIZE
    assert receiver.bad_packets == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_packets_are_decoded_or_silent(seed: int) -> None:
    draw = random.Random(seed)
    packets = [draw.randbytes(draw.choice([0, 1, 2, 5, 40, 120, 400])) for _ in range(20)]
    received = OpusReceiver().push(pages_of(packets), NO_LIMIT)
    assert received.pcm.size == sum(packet_samples(packet) for packet in packets) // 2
    assert received.pcm.dtype == np.float32
    assert np.isfinite(received.pcm).all()
    assert np.abs(received.pcm).max(initial=0) <= 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_streams_give_bounded_audio(data: st.DataObject) -> None:
    """The audio is damaged but the checksums are good: only such damage reaches the decoder."""
    packets = short_packets(2)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(packets) - 1))
        cut = data.draw(st.integers(0, len(packets[at])))
        packets[at] = packets[at][:cut] + data.draw(st.binary(max_size=4)) + packets[at][cut + 1 :]
    receiver = OpusReceiver()
    limit = data.draw(st.integers(0, 4 * FRAME_SIZE))
    received = receiver.push(pages_of(packets), limit)
    assert received.pcm.size <= limit
    assert received.pcm.size + received.skipped == sum(packet_samples(packet) for packet in packets) // 2
    assert np.isfinite(received.pcm).all()
    assert np.abs(received.pcm).max(initial=0) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300)))
def test_arbitrary_bytes_give_no_audio(messages: list[bytes]) -> None:
    receiver = OpusReceiver()
    with suppress(ProtocolError):
        for message in messages:
            received = receiver.push(message, NO_LIMIT)
            assert received.pcm.size == 0 and not received.is_audio


OTHERS = {
    "WebM": b"\x1aE\xdf\xa3\x9f\x42\x86\x81\x01",
    "WAV": b"RIFF\0\0\0\0WAVEfmt ",
    "MP4": b"\0\0\0\x20ftypM4A ",
    "FLAC": b"fLaC\0\0\0\x22",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_another_container_is_named_at_once(name: str, size: int) -> None:
    """For any division into messages."""
    data = OTHERS[name]
    receiver = OpusReceiver()
    with pytest.raises(ProtocolError, match=f"The audio is {name}.*must be Opus in Ogg pages"):
        for start in range(0, len(data), size):
            receiver.push(data[start : start + size], NO_LIMIT)


def test_raw_samples_sent_as_opus_are_refused_within_a_second() -> None:
    samples, receiver = (speech(12) * 32767).astype("<i2"), OpusReceiver()
    with pytest.raises(ProtocolError, match=r"has no Ogg page in 3\d,\d{3} bytes"):
        for frame in samples.reshape(-1, FRAME_SIZE):
            receiver.push(frame.tobytes(), NO_LIMIT)


@pytest.mark.parametrize(
    "first, name",
    [
        (b"\x01vorbis\0\0\0\0\1", "Vorbis"),
        (b"Speex   1.2", "Speex"),
        (b"OpusHead\1\6\0\0\x80\xbb\0\0\0\0\1", "Opus of more than two channels"),
        (b"what", "an unknown codec"),
    ],
)
def test_an_ogg_stream_of_another_codec_is_named(first: bytes, name: str) -> None:
    writer, receiver = PageWriter(SERIAL), OpusReceiver()
    assert receiver.push(writer.page([first]), NO_LIMIT).pcm.size == 0  # a stream of Opus may begin beside it
    with pytest.raises(ProtocolError, match=f"is Ogg with {name}"):
        receiver.push(writer.page([b"audio"]), NO_LIMIT)


def test_opus_beside_another_stream_is_decoded() -> None:
    skeleton, opus_pages = PageWriter(SERIAL + 1), sent(3)
    data = skeleton.page([b"fishead\0"]) + opus_pages[0] + skeleton.page([b"fisbone\0"]) + b"".join(opus_pages[1:])
    assert heard(data).size == 3 * FRAME_SIZE


def test_bytes_outside_pages_are_counted() -> None:
    receiver, pages = OpusReceiver(), sent(4)
    receiver.push(b"".join(pages[:3]), NO_LIMIT)
    assert receiver.bad == 0
    for _ in range(3):
        assert not receiver.push(b"no page at all", NO_LIMIT).is_audio
    assert receiver.bad == 3
    assert receiver.push(pages[3], NO_LIMIT).is_audio and receiver.bad <= 4  # the last bytes could have begun a page


def test_damaged_packets_alone_are_not_audio() -> None:
    received = OpusReceiver().push(pages_of([b"\x79\x01\x02\x03"] * 3), NO_LIMIT)  # two equal frames in three bytes
    assert received.pcm.size > 0 and not received.pcm.any() and not received.is_audio
