"""Opus: what is said is heard, in both directions, and nothing a client sends stops the decoder."""

import random
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server import opus
from pplex.server.ogg import HEADER, LAST, OpusHead, PageReader, PageWriter, build_page, packet_samples, tags_packet
from pplex.server.opus import HalfBandDecimator, OpusReceiver, OpusSender, PacketEncoder, Pcm
from pplex.server.protocol import FRAME_SIZE, ProtocolError

NO_LIMIT = 10**9
SERIAL = 77


@pytest.fixture
def sphn() -> Any:
    """The reference server's codec, which has no wheel for every processor."""
    return pytest.importorskip("sphn", reason="sphn is not installed: it has no wheel for this processor")


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
    """Packets as a stream, `each` of them in a page; one begun in its middle where there is no head."""
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
    """Samples that `coded` is late, and how many dB the original is above the difference."""
    size = min(original.size, coded.size) - longest
    late = int(np.argmax([original[:size] @ coded[d : d + size] for d in range(longest)]))
    difference = coded[late : late + size] - original[:size]
    return late, 10 * np.log10(np.sum(original[:size] ** 2) / np.sum(difference**2))


def test_what_is_sent_is_heard_by_the_reference_library(sphn: Any) -> None:
    pcm, reader = speech(25), sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    sender = OpusSender()
    coded = [reader.append_bytes(b"".join(sender.frame(frame))) for frame in pcm.reshape(25, -1)]
    late, snr = delay_and_snr(pcm, np.concatenate(coded))
    assert [part.size for part in coded] == [FRAME_SIZE] * 25  # every frame at once
    assert (late < 80, snr > 12) == (True, True), (late, snr)


def test_what_the_reference_library_sends_is_heard(sphn: Any) -> None:
    pcm, writer, receiver = speech(25), sphn.OpusStreamWriter(SAMPLE_RATE_HZ), OpusReceiver()
    messages = [writer.append_pcm(frame) for frame in pcm.reshape(25, -1)]
    data, coded = b"".join(messages), np.concatenate([receiver.push(part, NO_LIMIT).pcm for part in messages])
    late, snr = delay_and_snr(sphn.OpusStreamReader(SAMPLE_RATE_HZ).append_bytes(data), coded)
    assert (late < 30, snr > 15) == (True, True), (late, snr)
    original = pcm[: coded.size - 200]
    likeness = max(np.corrcoef(original, coded[late : late + original.size])[0, 1] for late in range(200))
    assert likeness > 0.8  # it codes for telephony, which shifts the phase of the low tones


def test_what_is_sent_is_heard_by_us() -> None:
    coded = heard(b"".join(sent(25)))
    late, snr = delay_and_snr(speech(25), coded)
    assert coded.size == 25 * FRAME_SIZE
    assert (late < 90, snr > 12) == (True, True), (late, snr)


def test_every_frame_gives_a_page_of_one_packet_and_the_first_one_the_headers_too() -> None:
    sender, reader = OpusSender(), PageReader()
    for frame, pcm in enumerate(speech(5).reshape(5, -1)):
        pages = sender.frame(pcm)
        assert len(pages) == (1 if frame else 3)
        assert HEADER.unpack_from(pages[-1])[3] == (frame + 1) * 3840
        found = [item for page in pages for item in reader.push(page)]
        if frame == 0:
            assert found.pop(0) == OpusHead(120, SAMPLE_RATE_HZ)
        assert [packet_samples(item) for item in found if isinstance(item, bytes)] == [3840]  # 80 ms


def finished(tmp_path: Path) -> Path:
    """Twelve frames in a file, the last page marked as the stream's end."""
    *pages, page = sent(12)
    _, _, _, granule, serial, sequence, _, segments = HEADER.unpack_from(page)
    lacing, body = page[HEADER.size : HEADER.size + segments], page[HEADER.size + segments :]
    path = tmp_path / "sent.ogg"
    path.write_bytes(b"".join([*pages, build_page(LAST, granule, serial, sequence, lacing, body)]))
    return path


@pytest.mark.skipif(shutil.which("opusinfo") is None, reason="opusinfo (opus-tools) is not installed")
def test_opusinfo_finds_no_fault_with_what_is_sent(tmp_path: Path) -> None:
    done = subprocess.run(["opusinfo", str(finished(tmp_path))], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stdout) == (0, False), done.stdout
    assert "Page duration:     80.0ms (max),   80.0ms (avg),   80.0ms (min)" in done.stdout


def test_a_media_library_reads_what_is_sent(tmp_path: Path) -> None:
    with av.open(str(finished(tmp_path))) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 12 * 3840 - 120


@pytest.mark.parametrize("loud", [3.0, np.inf, -np.inf, np.nan])
def test_what_is_too_loud_or_no_number_does_not_spoil_what_follows(loud: float) -> None:
    pcm, sender = speech(6), OpusSender()
    pcm[: 2 * FRAME_SIZE : 7] = loud
    coded = heard(b"".join(page for frame in pcm.reshape(6, -1) for page in sender.frame(frame)))
    _, snr = delay_and_snr(speech(6)[3 * FRAME_SIZE :], coded[3 * FRAME_SIZE :])
    assert np.abs(coded).max() <= 1
    assert snr > 10


def test_a_frame_of_another_size_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="1920"):
        OpusSender().frame(np.zeros(960, np.float32))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=40))
def test_any_division_gives_the_same_samples(cuts: list[int]) -> None:
    data, receiver = b"".join(sent(4)), OpusReceiver()
    ends = sorted(min(cut, len(data)) for cut in cuts)
    parts = [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
    assert np.array_equal(np.concatenate([receiver.push(part, NO_LIMIT).pcm for part in parts]), heard(data))


def test_packets_one_by_one_give_the_same_samples_as_all_at_once() -> None:
    packets = short_packets(10)
    assert len(packets) == 40
    assert np.array_equal(heard(pages_of(packets)), heard(pages_of(packets, each=40)))


def test_a_stream_begun_in_its_middle_is_heard() -> None:
    pages = sent(25)
    late, snr = delay_and_snr(speech(25)[5 * FRAME_SIZE :], heard(pages[6][100:] + b"".join(pages[7:])))
    assert (late < 100, snr > 12) == (True, True), (late, snr)


def test_a_damaged_page_is_missing_and_the_rest_is_heard() -> None:
    pages = sent(25)
    pages[4] = pages[4][:200] + b"damaged" + pages[4][207:]
    receiver = OpusReceiver()
    coded = receiver.push(b"".join(pages), NO_LIMIT).pcm
    assert coded.size == 24 * FRAME_SIZE
    assert receiver.pages.bad_pages == 1
    assert delay_and_snr(speech(25)[4 * FRAME_SIZE :], coded[3 * FRAME_SIZE :])[1] > 12


def test_a_new_stream_is_decoded_from_the_beginning() -> None:
    data = b"".join(sent(5))
    receiver = OpusReceiver()
    first, second = receiver.push(data, NO_LIMIT).pcm, receiver.push(data, NO_LIMIT).pcm
    assert first.size == second.size
    assert np.array_equal(first[39:], second[39:])  # before that, the filter still has the first stream's end


@pytest.mark.parametrize("with_head", [True, False])
def test_stereo_is_mixed_to_mono(with_head: bool) -> None:
    tone = (0.4 * np.sin(2 * np.pi * 400 * np.arange(48_000) / 48_000)).astype(np.float32)
    packets = encoded(np.stack([tone, 0 * tone], 1).ravel(), "stereo")
    coded = heard(pages_of(packets, OpusHead(312, 48_000, 2) if with_head else None))
    assert coded.size == pytest.approx(24_000, abs=960)
    assert np.sqrt(np.mean(coded[4000:20000] ** 2)) == pytest.approx(0.2 / np.sqrt(2), rel=0.1)


def level(pcm: Pcm) -> float:
    return float(np.sqrt(np.mean(pcm**2)))


@pytest.mark.parametrize("other", [-1.0, -0.8], ids=["opposite", "opposite and quieter"])
@pytest.mark.parametrize("application", ["audio", "voip"])
def test_stereo_whose_channels_cancel_out_is_heard_and_logged_once(
    other: float, application: str, caplog: pytest.LogCaptureFixture
) -> None:
    pcm = np.repeat(speech(12), 2)  # at 48 kHz
    packets = encoded(np.stack([pcm, other * pcm], 1).ravel(), "stereo", application=application)
    alone = heard(pages_of(encoded(pcm, "mono", application=application)))
    assert not caplog.messages
    receiver = OpusReceiver()
    coded = receiver.push(pages_of(packets, OpusHead(312, 48_000, 2)), NO_LIMIT).pcm
    assert level(coded) == pytest.approx(level(alone), rel=0.05)
    assert receiver.has_cancelled
    assert caplog.messages == ["a client's stereo channels cancel out: the louder channel is heard"]


def test_a_client_that_turns_to_stereo_and_back_is_heard_all_along(caplog: pytest.LogCaptureFixture) -> None:
    pcm = np.repeat(speech(12), 2)
    mono, stereo = encoded(pcm, "mono"), encoded(np.stack([pcm, pcm], 1).ravel(), "stereo")
    coded = heard(pages_of([*mono, *stereo, *mono]))
    thirds = np.array_split(coded, 3)
    assert [level(third) == pytest.approx(level(thirds[0]), rel=0.05) for third in thirds] == [True] * 3
    assert not caplog.messages


@pytest.mark.parametrize("with_head", [True, False])
def test_mono_is_what_the_library_decodes_to_the_bit(with_head: bool) -> None:
    packets = encoded(np.repeat(speech(6), 2), "mono")
    decoder, decimator = av.CodecContext.create("libopus", "r"), HalfBandDecimator()
    decoder.layout, decoder.sample_rate = "mono", 48_000
    decoder.open()
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
    expected = decimator.push([frame.to_ndarray().ravel() for frame in frames])
    channels = 2  # what MediaRecorder's head says of a mono microphone
    assert np.array_equal(heard(pages_of(packets, OpusHead(312, 48_000, channels) if with_head else None)), expected)


@pytest.mark.parametrize("frame_ms", ["2.5", "5", "10", "20", "40", "60", "120"])
def test_packets_of_every_length_are_heard(frame_ms: str) -> None:
    tone = (0.4 * np.sin(2 * np.pi * 400 * np.arange(48_000) / 48_000)).astype(np.float32)
    receiver = OpusReceiver()
    coded = receiver.push(pages_of(encoded(tone, "mono", frame_duration=frame_ms)), NO_LIMIT).pcm
    assert receiver.bad_packets == 0
    assert np.sqrt(np.mean(coded[4000:20000] ** 2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.1)


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


def test_a_packet_the_decoder_refuses_is_silence_of_its_length_and_counted() -> None:
    packets = short_packets(4)
    packets[5] = b"\xff\x06"  # claims six frames and lacks their sizes or their equal parts
    packets[6:6] = [b"", b"\xff", b"\x83\x31"]
    packets[9] = b"\x79\x01\x02"  # two frames that do not share two bytes evenly
    packets[10] = b"\xfa\xff"
    receiver = OpusReceiver()
    coded = receiver.push(pages_of(packets), NO_LIMIT).pcm
    assert receiver.bad_packets >= 4
    assert coded.size == sum(packet_samples(packet) for packet in packets) // 2
    whole = heard(pages_of(short_packets(4)))
    assert np.abs(coded[-2000:] - whole[-2000:]).max() < 0.1  # the decoder has found its way back


def test_a_decoder_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, data = OpusReceiver(), b"".join(sent(2)[2:])
    receiver._decoder.decode(None)  # it now takes everything for what comes after the end
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
def test_mutated_streams_are_heard_within_bounds(data: st.DataObject) -> None:
    """The audio is damaged under good checksums, which is the only way for damage to reach the decoder."""
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
def test_arbitrary_bytes_are_silent_or_refused_and_no_audio(messages: list[bytes]) -> None:
    receiver = OpusReceiver()
    with suppress(ProtocolError):
        for message in messages:
            received = receiver.push(message, NO_LIMIT)
            assert received.pcm.size == 0 and not received.is_audio


# What is no Ogg Opus at all.

OTHERS = {
    "WebM": b"\x1aE\xdf\xa3\x9f\x42\x86\x81\x01",
    "WAV": b"RIFF\0\0\0\0WAVEfmt ",
    "MP4": b"\0\0\0\x20ftypM4A ",
    "FLAC": b"fLaC\0\0\0\x22",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_another_container_is_named_as_soon_as_it_is_known(name: str, size: int) -> None:
    """However the client divides it."""
    data = OTHERS[name]
    receiver = OpusReceiver()
    with pytest.raises(ProtocolError, match=f"The audio is {name}.*must be Opus in Ogg pages"):
        for start in range(0, len(data), size):
            receiver.push(data[start : start + size], NO_LIMIT)


def test_samples_that_are_sent_as_opus_are_refused_within_a_second() -> None:
    samples, receiver = (speech(12) * 32767).astype("<i2"), OpusReceiver()
    with pytest.raises(ProtocolError, match=r"holds no Ogg page in 3\d,\d{3} bytes"):
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


def test_opus_beside_another_stream_is_heard() -> None:
    skeleton, opus_pages = PageWriter(SERIAL + 1), sent(3)
    data = skeleton.page([b"fishead\0"]) + opus_pages[0] + skeleton.page([b"fisbone\0"]) + b"".join(opus_pages[1:])
    assert heard(data).size == 3 * FRAME_SIZE


def test_bytes_that_belong_to_no_page_are_counted() -> None:
    receiver, pages = OpusReceiver(), sent(4)
    receiver.push(b"".join(pages[:3]), NO_LIMIT)
    assert receiver.bad == 0
    for _ in range(3):
        assert not receiver.push(b"no page at all", NO_LIMIT).is_audio
    assert receiver.bad == 3
    assert receiver.push(pages[3], NO_LIMIT).is_audio and receiver.bad <= 4  # the last bytes could have begun a page


def test_packets_of_damage_only_are_no_audio() -> None:
    received = OpusReceiver().push(pages_of([b"\x79\x01\x02\x03"] * 3), NO_LIMIT)  # two equal frames in three bytes
    assert received.pcm.size > 0 and not received.pcm.any() and not received.is_audio


def tone(frequency_hz: float) -> opus.Pcm16:
    return (20_000 * np.sin(2 * np.pi * frequency_hz * np.arange(9600) / 48_000)).astype(np.int16)


@pytest.mark.parametrize("frequency_hz", [50, 1000, 5000, 9000, 10_500])
def test_the_filter_is_flat_to_10_5_khz(frequency_hz: float) -> None:
    pcm = HalfBandDecimator().push([tone(frequency_hz)])[100:-100]
    assert np.sqrt(2 * np.mean(pcm**2)) * 32768 / 20_000 == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("frequency_hz", [13_500, 16_000, 20_000, 23_500])
def test_the_filter_keeps_out_what_would_fold_into_it(frequency_hz: float) -> None:
    pcm = HalfBandDecimator().push([tone(frequency_hz)])[100:-100]
    assert 20 * np.log10(np.sqrt(2 * np.mean(pcm**2)) * 32768 / 20_000) < -70


def test_the_filter_is_less_than_a_millisecond_late() -> None:
    impulse = np.zeros(960, np.int16)
    impulse[1] = 32767
    assert np.abs(HalfBandDecimator().push([impulse])).argmax() == 20  # (1 + 39) / 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 500).map(lambda n: 2 * n), min_size=1, max_size=20))
def test_the_filter_gives_the_same_for_any_division(sizes: list[int]) -> None:
    noise = np.random.default_rng(0).integers(-32768, 32768, sum(sizes)).astype(np.int16)
    divided, decimator = np.split(noise, np.cumsum(sizes)[:-1]), HalfBandDecimator()
    assert np.array_equal(
        np.concatenate([decimator.push([part]) for part in divided]), HalfBandDecimator().push([noise])
    )


def test_the_loudest_samples_stay_within_bounds() -> None:
    square = np.where(np.arange(9600) // 13 % 2, 32767, -32768).astype(np.int16)
    assert np.abs(HalfBandDecimator().push([square])).max() == 1
