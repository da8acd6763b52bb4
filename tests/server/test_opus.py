"""Opus in both directions: our frames and those of clients are decoded correctly."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opus_streams import NO_LIMIT, delay_and_snr, encoded, heard, pages_of, sent, short_packets, speech

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.ogg import HEADER, LAST, OpusHead, PageReader, build_page, packet_samples
from pplex.server.opus import HalfBandDecimator, OpusReceiver, OpusSender, Pcm
from pplex.server.wire import FRAME_SIZE


@pytest.fixture
def sphn() -> Any:
    """The codec of the reference server; some processors have no wheel of it."""
    return pytest.importorskip("sphn", reason="sphn is not installed: it has no wheel for this processor")


def test_our_stream_is_decoded_by_the_reference_library(sphn: Any) -> None:
    pcm, reader = speech(25), sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    sender = OpusSender()
    coded = [reader.append_bytes(b"".join(sender.frame(frame))) for frame in pcm.reshape(25, -1)]
    late, snr = delay_and_snr(pcm, np.concatenate(coded))
    assert [part.size for part in coded] == [FRAME_SIZE] * 25  # every frame at once
    assert (late < 80, snr > 12) == (True, True), (late, snr)


def test_stream_of_the_reference_library_is_decoded(sphn: Any) -> None:
    pcm, writer, receiver = speech(25), sphn.OpusStreamWriter(SAMPLE_RATE_HZ), OpusReceiver()
    messages = [writer.append_pcm(frame) for frame in pcm.reshape(25, -1)]
    data, coded = b"".join(messages), np.concatenate([receiver.push(part, NO_LIMIT).pcm for part in messages])
    late, snr = delay_and_snr(sphn.OpusStreamReader(SAMPLE_RATE_HZ).append_bytes(data), coded)
    assert (late < 30, snr > 15) == (True, True), (late, snr)
    original = pcm[: coded.size - 200]
    likeness = max(np.corrcoef(original, coded[late : late + original.size])[0, 1] for late in range(200))
    assert likeness > 0.8  # its telephony mode shifts the phase of low tones


def test_our_stream_is_decoded_by_our_receiver() -> None:
    coded = heard(b"".join(sent(25)))
    late, snr = delay_and_snr(speech(25), coded)
    assert coded.size == 25 * FRAME_SIZE
    assert (late < 90, snr > 12) == (True, True), (late, snr)


def test_every_frame_is_one_page_and_the_first_brings_the_headers() -> None:
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
def test_opusinfo_finds_no_fault_in_our_stream(tmp_path: Path) -> None:
    done = subprocess.run(["opusinfo", str(finished(tmp_path))], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stdout) == (0, False), done.stdout
    assert "Page duration:     80.0ms (max),   80.0ms (avg),   80.0ms (min)" in done.stdout


def test_a_media_library_reads_our_stream(tmp_path: Path) -> None:
    with av.open(str(finished(tmp_path))) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 12 * 3840 - 120


@pytest.mark.parametrize("loud", [3.0, np.inf, -np.inf, np.nan])
def test_too_loud_or_nan_samples_do_not_spoil_later_frames(loud: float) -> None:
    pcm, sender = speech(6), OpusSender()
    pcm[: 2 * FRAME_SIZE : 7] = loud
    coded = heard(b"".join(page for frame in pcm.reshape(6, -1) for page in sender.frame(frame)))
    _, snr = delay_and_snr(speech(6)[3 * FRAME_SIZE :], coded[3 * FRAME_SIZE :])
    assert np.abs(coded).max() <= 1
    assert snr > 10


def test_a_frame_of_another_size_raises() -> None:
    with pytest.raises(AssertionError, match="1920"):
        OpusSender().frame(np.zeros(960, np.float32))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=40))
def test_any_division_gives_the_same_samples(cuts: list[int]) -> None:
    data, receiver = b"".join(sent(4)), OpusReceiver()
    ends = sorted(min(cut, len(data)) for cut in cuts)
    parts = [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
    assert np.array_equal(np.concatenate([receiver.push(part, NO_LIMIT).pcm for part in parts]), heard(data))


def test_packets_one_by_one_equal_all_at_once() -> None:
    packets = short_packets(10)
    assert len(packets) == 40
    assert np.array_equal(heard(pages_of(packets)), heard(pages_of(packets, each=40)))


def test_a_stream_joined_late_is_decoded() -> None:
    pages = sent(25)
    late, snr = delay_and_snr(speech(25)[5 * FRAME_SIZE :], heard(pages[6][100:] + b"".join(pages[7:])))
    assert (late < 100, snr > 12) == (True, True), (late, snr)


def test_a_new_stream_resets_the_decoder() -> None:
    data = b"".join(sent(5))
    receiver = OpusReceiver()
    first, second = receiver.push(data, NO_LIMIT).pcm, receiver.push(data, NO_LIMIT).pcm
    assert first.size == second.size
    assert np.array_equal(
        first[39:], second[39:]
    )  # earlier samples still contain the end of the first stream, in the filter


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
def test_cancelling_stereo_channels_are_audible_and_logged_once(
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


def test_switching_to_stereo_and_back_keeps_the_level(caplog: pytest.LogCaptureFixture) -> None:
    pcm = np.repeat(speech(12), 2)
    mono, stereo = encoded(pcm, "mono"), encoded(np.stack([pcm, pcm], 1).ravel(), "stereo")
    coded = heard(pages_of([*mono, *stereo, *mono]))
    thirds = np.array_split(coded, 3)
    assert [level(third) == pytest.approx(level(thirds[0]), rel=0.05) for third in thirds] == [True] * 3
    assert not caplog.messages


@pytest.mark.parametrize("with_head", [True, False])
def test_mono_equals_the_output_of_the_library_bit_for_bit(with_head: bool) -> None:
    packets = encoded(np.repeat(speech(6), 2), "mono")
    decoder, decimator = av.CodecContext.create("libopus", "r"), HalfBandDecimator()
    decoder.layout, decoder.sample_rate = "mono", 48_000
    decoder.open()
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
    expected = decimator.push([frame.to_ndarray().ravel() for frame in frames])
    channels = 2  # MediaRecorder claims two channels for a mono microphone
    assert np.array_equal(heard(pages_of(packets, OpusHead(312, 48_000, channels) if with_head else None)), expected)


@pytest.mark.parametrize("frame_ms", ["2.5", "5", "10", "20", "40", "60", "120"])
def test_packets_of_every_duration_are_decoded(frame_ms: str) -> None:
    tone = (0.4 * np.sin(2 * np.pi * 400 * np.arange(48_000) / 48_000)).astype(np.float32)
    receiver = OpusReceiver()
    coded = receiver.push(pages_of(encoded(tone, "mono", frame_duration=frame_ms)), NO_LIMIT).pcm
    assert receiver.bad_packets == 0
    assert np.sqrt(np.mean(coded[4000:20000] ** 2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.1)
