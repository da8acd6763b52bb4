"""Reading, writing and checking audio, with real files, pipes and pyloudnorm."""

import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import FORMATS, encode_audio, frames, normalize_loudness, read_audio
from pplex.runtime.errors import AudioError, AudioWarning, OutputError
from pplex.runtime.files import write_files

RATE_HZ = 24_000
VOICE = Path(__file__).parents[1] / "golden/tiny/checkpoint/voices/synthetic.wav"


def write_audio(target: Path | str, pcm: np.ndarray) -> None:
    write_files({str(target): encode_audio(target, pcm)})


def tone(seconds: float, rate_hz: int = RATE_HZ, hz: float = 440.0, level: float = 0.5) -> Pcm:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def inner(pcm: Pcm) -> Pcm:
    """Compare without the edges, where a resampler lacks samples on one side."""
    return pcm[1000:-1000]


class TestRead:
    def test_golden_voice_keeps_its_samples(self) -> None:
        pcm = read_audio(VOICE)
        expected, _ = soundfile.read(VOICE, dtype="float32")
        assert pcm.dtype == np.float32
        np.testing.assert_array_equal(pcm, expected)

    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000, 96000])
    def test_any_rate_is_resampled_to_24_khz(self, tmp_path: Path, rate_hz: int, suffix: str) -> None:
        path = tmp_path / f"tone{suffix}"
        soundfile.write(path, tone(1.0, rate_hz), rate_hz)
        pcm = read_audio(path)
        assert abs(len(pcm) - RATE_HZ) <= 1
        tolerance = 0.02 if suffix == ".ogg" else 1e-3
        np.testing.assert_allclose(inner(pcm), inner(tone(1.0))[: len(inner(pcm))], atol=tolerance)

    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        path = tmp_path / "three.wav"
        left, right = tone(0.2, level=0.3), tone(0.2, hz=100.0, level=0.4)
        soundfile.write(path, np.stack([left, right, np.zeros_like(left)], axis=1), RATE_HZ, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(path), (left + right) / 3, atol=1e-7)

    def test_files_longer_than_one_block_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "long.wav"
        pcm = np.random.default_rng(0).uniform(-1, 1, 200_001).astype(np.float32)
        soundfile.write(path, pcm, RATE_HZ, subtype="FLOAT")
        np.testing.assert_array_equal(read_audio(path), pcm)

    def test_open_file_and_path_as_text_and_memory_agree(self) -> None:
        with VOICE.open("rb") as file:
            from_file = read_audio(file)
        np.testing.assert_array_equal(from_file, read_audio(str(VOICE)))
        np.testing.assert_array_equal(from_file, read_audio(io.BytesIO(VOICE.read_bytes())))

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_named_pipe_is_read(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe.wav"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(VOICE.read_bytes(),))
        writer.start()
        pcm = read_audio(pipe)
        writer.join()
        np.testing.assert_array_equal(pcm, read_audio(VOICE))

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("missing.wav", None, "does not exist. Name a wav"),
            ("notes.wav", b"these are notes, not audio", "is damaged or not audio (Format not recognised)"),
            ("notes.raw", b"these are notes, not audio", "is damaged or not audio"),
            ("nothing.wav", b"", "holds no samples"),
            ("cut.flac", b"fLaC\x00\x00\x00\x22", "damaged"),
        ],
    )
    def test_refusals_name_the_file(self, tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(AudioError) as refusal:
            read_audio(path)
        assert str(path) in str(refusal.value)
        assert sentence in str(refusal.value)

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match="is a folder"):
            read_audio(tmp_path)

    @pytest.mark.parametrize("rate_hz", [RATE_HZ, 48000])
    def test_a_file_without_samples_is_refused(self, tmp_path: Path, rate_hz: int) -> None:
        path = tmp_path / "empty.wav"
        soundfile.write(path, np.zeros(0, np.float32), rate_hz)
        with pytest.raises(AudioError, match=r"empty\.wav holds no samples"):
            read_audio(path)

    def test_a_file_shorter_than_one_resampled_sample_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "one.wav"
        soundfile.write(path, np.zeros(1, np.float32), 192_000)
        with pytest.raises(AudioError, match="holds no samples"):
            read_audio(path)

    def test_samples_not_finite_are_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.wav"
        pcm = np.zeros((48_000, 2), np.float32)
        pcm[12_000, 0], pcm[30_000] = np.nan, (np.inf, -np.inf)
        soundfile.write(path, pcm, 48_000, subtype="FLOAT")
        with pytest.raises(AudioError, match=r"NaN or infinite samples: 2 of 48000, the first at 0\.250 s"):
            read_audio(path)

    def test_a_truncated_flac_is_refused(self, tmp_path: Path) -> None:
        whole, cut = tmp_path / "whole.flac", tmp_path / "cut.flac"
        soundfile.write(whole, np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), RATE_HZ)
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(AudioError, match=r"cut\.flac is damaged"):
            read_audio(cut)

    def test_flac_that_claims_more_samples_than_it_holds(self, tmp_path: Path) -> None:
        path, count = tmp_path / "claims.flac", b"\x0f\xff\xff\xff\xff"
        soundfile.write(path, tone(0.5), RATE_HZ)
        data = bytearray(path.read_bytes())
        data[21:26] = bytes([data[21] & 0xF0 | count[0]]) + count[1:]  # 36 bits in the stream's header
        path.write_bytes(data)
        with pytest.warns(AudioWarning, match=r"only 0\.50 s of its 286\d*\.\d+ s can be decoded"):
            np.testing.assert_allclose(read_audio(path), tone(0.5), atol=1e-4)

    def test_a_streamed_wav_without_its_length_is_read(self) -> None:
        data = bytearray(VOICE.read_bytes())
        assert data[36:40] == b"data"
        data[4:8] = data[40:44] = b"\xff" * 4
        np.testing.assert_array_equal(read_audio(io.BytesIO(data)), read_audio(VOICE))

    def test_cancelling_channels_keep_the_louder_one_with_a_warning(self, tmp_path: Path) -> None:
        path = tmp_path / "antiphase.wav"
        soundfile.write(path, np.stack([tone(2.0), -0.8 * tone(2.0)], axis=1), RATE_HZ, subtype="FLOAT")
        with pytest.warns(AudioWarning, match=r"antiphase\.wav: its 2 channels cancel out .* only channel 1 is heard"):
            np.testing.assert_array_equal(read_audio(path), tone(2.0))

    def test_a_speaker_in_one_of_eight_channels_keeps_the_level(self, tmp_path: Path) -> None:
        path = tmp_path / "eight.flac"
        pcm = np.zeros((48_000, 8), np.float32)
        pcm[:, 5] = tone(2.0)
        soundfile.write(path, pcm, RATE_HZ)
        with pytest.warns(AudioWarning, match="the mean of its 8 channels is too quiet: it is raised by 18 dB"):
            np.testing.assert_allclose(read_audio(path), tone(2.0), atol=1e-4)

    @pytest.mark.parametrize(
        ("subtype", "scale", "advice"),
        [("FLOAT", 1 << 15, "16-bit integers .* by 32,768"), ("DOUBLE", 1 << 23, "24-bit integers .* by 8,388,608")],
    )
    def test_unscaled_integers_are_refused(self, tmp_path: Path, subtype: str, scale: int, advice: str) -> None:
        path = tmp_path / "unscaled.wav"
        soundfile.write(path, tone(1.0).astype(np.float64) * scale, RATE_HZ, subtype=subtype)
        with pytest.raises(AudioError, match=rf"unscaled\.wav holds samples up to {scale // 2:,}.*{advice}"):
            read_audio(path)

    def test_float_samples_above_full_scale_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "hot.wav"
        soundfile.write(path, tone(0.5, level=4.0), RATE_HZ, subtype="FLOAT")
        np.testing.assert_array_equal(read_audio(path), tone(0.5, level=4.0))

    def test_a_warning_points_at_the_callers_line(self, tmp_path: Path) -> None:
        path = tmp_path / "antiphase.wav"
        soundfile.write(path, np.stack([tone(1.0), -tone(1.0)], axis=1), RATE_HZ)
        with pytest.warns(AudioWarning) as seen:
            read_audio(path)
        assert [Path(warning.filename).name for warning in seen] == [Path(__file__).name]

    def test_an_implausibly_low_rate_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "slow.wav"
        soundfile.write(path, tone(0.1), 7)
        with pytest.raises(AudioError, match="sampled at 7 Hz"):
            read_audio(path)


class TestWrite:
    @pytest.mark.parametrize("suffix", [*FORMATS, ".WAV"])
    def test_a_written_file_reads_back(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"out{suffix}"
        write_audio(path, tone(1.0))
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.frames) == (RATE_HZ, 1, RATE_HZ)
        assert info.subtype == FORMATS[suffix.lower()][1]
        tolerance = 0.02 if suffix == ".ogg" else 1e-4
        np.testing.assert_allclose(inner(read_audio(path)), inner(tone(1.0)), atol=tolerance)

    def test_replaces_a_file_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "out.wav"
        path.write_bytes(b"old")
        write_audio(str(path), tone(0.1))
        assert os.listdir(tmp_path) == ["out.wav"]
        assert len(read_audio(path)) == 2400

    def test_samples_are_clipped_not_wrapped(self, tmp_path: Path) -> None:
        path = tmp_path / "loud.wav"
        write_audio(path, np.array([-3.0, -1.0, 0.0, 1.0, 3.0]))
        np.testing.assert_allclose(read_audio(path), [-1, -1, 0, 1, 1], atol=1e-4)

    def test_minutes_of_ogg_are_written(self, tmp_path: Path) -> None:
        """libsndfile crashes the process if it gets this in one call."""
        path = tmp_path / "long.ogg"
        write_audio(path, np.zeros(120 * RATE_HZ, np.float32))
        assert soundfile.info(path).frames == 120 * RATE_HZ

    @pytest.mark.parametrize("name", ["out.mp3", "out", "out.wav.txt"])
    def test_an_unknown_suffix_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match=r"one of \.wav, \.flac, \.ogg"):
            write_audio(tmp_path / name, tone(0.1))

    def test_a_missing_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"the folder .* does not exist"):
            write_audio(tmp_path / "no" / "out.wav", tone(0.1))

    def test_a_folder_as_target_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "out.wav").mkdir()
        with pytest.raises(OutputError, match="is a folder"):
            write_audio(tmp_path / "out.wav", tone(0.1))
        assert os.listdir(tmp_path) == ["out.wav"]

    @pytest.mark.parametrize(
        ("pcm", "sentence"),
        [
            (np.array([0.0, np.nan]), "infinite samples: 1 of 2, the first at 0"),
            (np.zeros((2, 10)), r"array of shape \[2, 10\]"),
            (np.zeros(0), r"array of shape \[0\]"),
        ],
    )
    def test_unusable_samples_leave_the_old_file(self, tmp_path: Path, pcm: Pcm, sentence: str) -> None:
        path = tmp_path / "out.wav"
        path.write_bytes(b"old")
        with pytest.raises(AudioError, match=sentence):
            write_audio(path, pcm)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["out.wav"]


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("samples", [1, 24_000, 24_001, 50_003])
def test_audio_of_another_rate_lasts_as_long(rate_hz: int, samples: int) -> None:
    pcm = (0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / 24_000)).astype(np.float32)
    written, rate = soundfile.read(io.BytesIO(encode_audio("x.wav", pcm, rate_hz)))
    assert rate == rate_hz and len(written) == max(1, round(samples * rate_hz / 24_000))
    if samples > 24_000:
        times_s = np.arange(len(written)) / rate_hz
        middle = slice(rate_hz // 4, -rate_hz // 4)
        np.testing.assert_allclose(written[middle], 0.3 * np.sin(2 * np.pi * 440 * times_s)[middle], atol=1e-3)


def test_standard_input_to_standard_output() -> None:
    copy = (
        "from pplex.runtime.audio import encode_audio, read_audio; from pplex.runtime.files import write_files; "
        "write_files({'-': encode_audio('-', read_audio('-'))})"
    )
    done = subprocess.run([sys.executable, "-c", copy], input=VOICE.read_bytes(), capture_output=True, check=True)
    np.testing.assert_allclose(read_audio(io.BytesIO(done.stdout)), read_audio(VOICE), atol=1e-4)


class TestFrames:
    @given(samples=st.integers(0, 40), frame_size=st.integers(1, 12))
    def test_all_samples_in_order_then_zeros(self, samples: int, frame_size: int) -> None:
        pcm = np.arange(1, samples + 1, dtype=np.float32)
        cut = frames(pcm, frame_size)
        assert cut.shape == (-(-samples // frame_size), frame_size)
        assert cut.dtype == np.float32
        np.testing.assert_array_equal(cut.ravel()[:samples], pcm)
        assert not cut.ravel()[samples:].any()


class TestLoudness:
    @pytest.mark.parametrize("lufs", [-24.0, -12.0])
    def test_reaches_the_loudness_as_pyloudnorm_does(self, lufs: float) -> None:
        pcm = read_audio(VOICE)
        meter = pyloudnorm.Meter(RATE_HZ)
        scaled = normalize_loudness(pcm, lufs)
        assert scaled.dtype == np.float32
        assert meter.integrated_loudness(scaled) == pytest.approx(lufs, abs=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pyloudnorm.normalize.loudness(pcm, meter.integrated_loudness(pcm), lufs)
        np.testing.assert_array_equal(scaled, expected.astype(np.float32))

    def test_may_exceed_one_without_a_warning(self) -> None:
        pcm = tone(1.0, level=0.01)
        pcm[::2400] = 1.0
        assert np.abs(normalize_loudness(pcm, 0.0)).max() > 1.0

    @pytest.mark.parametrize("pcm", [np.zeros(48_000, np.float32), tone(2.0, level=1e-6)])
    def test_silence_is_refused(self, pcm: Pcm) -> None:
        with pytest.raises(AudioError, match="is silent"):
            normalize_loudness(pcm)

    @pytest.mark.parametrize("samples", [0, 1, 9599])
    def test_a_too_short_recording_is_refused(self, samples: int) -> None:
        with pytest.raises(AudioError, match=r"at least 0\.4 s are needed to measure its loudness"):
            normalize_loudness(tone(1.0)[:samples])

    def test_the_shortest_recording_is_accepted(self) -> None:
        assert len(normalize_loudness(tone(1.0)[:9600])) == 9600
