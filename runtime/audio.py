"""Audio in and out: files and streams of any rate as 24 kHz mono float32, one frame's check, loudness of a wav voice.

Called by sessions (each frame), the command line and the server.
"""

import io
import os
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import AudioError, OutputError
from pplex.runtime.files import STANDARD_STREAM, check_writable

Pcm = npt.NDArray[np.float32]

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
VOICE_LUFS = -24.0
MIN_VOICE_S = 0.4  # one gating block of ITU-R BS.1770
MIN_RATE_HZ = 1000  # below it a header is damaged, and resampling would blow a small file up 24000-fold
BLOCK = 1 << 16  # samples handed to or taken from libsndfile at once


def read_audio(source: str | os.PathLike[str] | BinaryIO) -> Pcm:
    """All of a wav, flac or ogg as mono: [samples] float32 at 24 kHz, the mean of its channels, resampled where needed.

    `source` is a path, "-" for standard input, or an open binary file. Raises AudioError where there is no such file,
    it is no audio, or it holds no samples or ones that are not finite.
    """
    name, data = _read_bytes(source)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate_hz, pcm = file.samplerate, _mono(file)
    except soundfile.LibsndfileError as error:
        if not data:
            raise AudioError(f"{name} is empty: it holds no samples. Give a recording.") from error
        reason = error.error_string.strip(" .")
        raise AudioError(
            f"{name} is damaged or no audio that can be read ({reason}). Give a wav, flac or ogg file."
        ) from error
    _check_finite(pcm, name, rate_hz)
    pcm = _resampled(pcm, name, rate_hz)
    if not len(pcm):
        raise AudioError(f"{name} holds no samples. Give a recording.")
    return pcm


def _read_bytes(source: str | os.PathLike[str] | BinaryIO) -> tuple[str, bytes]:
    """Name for messages and content; read whole, because libsndfile must seek and a pipe cannot."""
    if not isinstance(source, str | os.PathLike):
        return str(getattr(source, "name", "the audio")), source.read()
    path = os.fspath(source)
    if path == STANDARD_STREAM:
        if sys.stdin is None:
            raise AudioError("There is no standard input to read: it is closed. Name a file.")
        return "standard input", sys.stdin.buffer.read()
    try:
        return path, Path(path).read_bytes()
    except FileNotFoundError as error:
        advice = f"Name a wav, flac or ogg file, or {STANDARD_STREAM} for standard input."
        raise AudioError(f"{path} does not exist. {advice}") from error
    except IsADirectoryError as error:
        raise AudioError(f"{path} is a folder. Name one wav, flac or ogg file in it.") from error
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from error


def _mono(file: soundfile.SoundFile) -> Pcm:
    """[samples] float32 at the file's rate; read in blocks, because the length a header gives may be a lie."""
    blocks = [np.zeros(0, np.float32)]
    with np.errstate(over="ignore", invalid="ignore"):  # infinite samples are reported later
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):  # [samples, channels]
            blocks.append(block.mean(axis=1))
    return np.concatenate(blocks)


def _check_finite(pcm: Pcm, name: str, rate_hz: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(pcm))
    if len(wrong):
        raise AudioError(
            f"{name} holds NaN or infinite samples: {len(wrong)} of {len(pcm)}, "
            f"the first at {wrong[0] / rate_hz:.3f} s.\n"
            "Export it again from its source, or cut them out."
        )


def _resampled(pcm: Pcm, name: str, rate_hz: int) -> Pcm:
    if rate_hz < MIN_RATE_HZ:
        raise AudioError(f"{name} is sampled at {rate_hz} Hz: give audio of {MIN_RATE_HZ} Hz or more.")
    if rate_hz == SAMPLE_RATE_HZ:
        return pcm
    resampled: Pcm = soxr.resample(pcm, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return resampled


def check_audio_target(target: str | os.PathLike[str]) -> None:
    """Raise OutputError if no audio could be written to `target`: for before the work of making the audio."""
    check_writable(target)
    suffix = Path(target).suffix.lower()
    if os.fspath(target) != STANDARD_STREAM and suffix not in FORMATS:
        raise OutputError(f"{target}: the suffix must name the format, one of {', '.join(FORMATS)}.")


def encode_audio(target: str | os.PathLike[str], pcm: npt.NDArray[np.floating]) -> bytes:
    """The bytes of a file with `pcm` [samples] at 24 kHz, clipped to [-1, 1], in the format the suffix names ("-": wav).

    Raises OutputError for a suffix or a folder that will not do, AudioError for samples that cannot be written.
    """
    check_audio_target(target)
    name = os.fspath(target)
    suffix = ".wav" if name == STANDARD_STREAM else Path(name).suffix.lower()
    if pcm.ndim != 1 or not len(pcm):
        raise AudioError(f"{name}: expected mono samples to write, got an array of shape {list(pcm.shape)}.")
    clipped = np.clip(pcm, -1, 1).astype(np.float32)
    _check_finite(clipped, f"The audio for {name}", SAMPLE_RATE_HZ)
    container, subtype = FORMATS[suffix]
    data = io.BytesIO()  # in memory: libsndfile does not report what a failing file object raises
    with soundfile.SoundFile(data, "w", SAMPLE_RATE_HZ, 1, subtype, format=container) as file:
        for start in range(0, len(clipped), BLOCK):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            file.write(clipped[start : start + BLOCK])
    return data.getvalue()


def frames(pcm: Pcm, frame_size: int) -> Pcm:
    """Cut `pcm` [samples] into [F, frame_size], the last frame filled up with zeros."""
    count = -(-len(pcm) // frame_size)
    return np.pad(pcm, (0, count * frame_size - len(pcm))).reshape(count, frame_size)


def check_frame(pcm: npt.NDArray[np.floating], frame_size: int) -> npt.NDArray[np.floating]:
    """`pcm`, if it is one frame, [frame_size] floats; raises AudioError for another shape, integers or no array."""
    if not isinstance(pcm, np.ndarray) or pcm.dtype.kind != "f":
        kind = pcm.dtype if isinstance(pcm, np.ndarray) else type(pcm).__name__
        raise AudioError(f"A frame must be a numpy array of float samples in [-1, 1], not {kind}.")
    if pcm.shape != (frame_size,):
        raise AudioError(f"A frame must be [{frame_size}] samples, mono at 24 kHz; this one is {list(pcm.shape)}.")
    return pcm


def check_finite(frames: Pcm) -> None:
    """Raise AudioError where any sample of `frames`, of any shape, is NaN or infinite."""
    # The least and the most of what holds a NaN is NaN; isfinite would make an array as long as the frames.
    with np.errstate(invalid="ignore"):
        finite = frames.min() > -np.inf and frames.max() < np.inf
    if not finite:
        raise AudioError("A frame holds samples that are NaN or infinite. Replace them, with zeros for silence.")


def normalize_loudness(pcm: Pcm, lufs: float = VOICE_LUFS) -> Pcm:
    """`pcm` [samples] at 24 kHz scaled to an integrated loudness of `lufs` (ITU-R BS.1770-4); may exceed 1.0.

    Raises AudioError where it is too short or too quiet to measure.
    """
    from pyloudnorm import Meter  # here, because it brings scipy, which takes a second and no other path needs

    if len(pcm) < MIN_VOICE_S * SAMPLE_RATE_HZ:
        raise AudioError(
            f"The recording lasts {len(pcm) / SAMPLE_RATE_HZ:.2f} s; measuring its loudness takes {MIN_VOICE_S} s.\n"
            "Give a longer one: some seconds of speech make a good voice."
        )
    loudness = float(Meter(SAMPLE_RATE_HZ).integrated_loudness(pcm))
    if not np.isfinite(loudness):
        raise AudioError("The recording is silent (below -70 LUFS). Give one in which somebody speaks.")
    # What pyloudnorm.normalize.loudness computes, without its warning of samples above 1.0: the codec takes them.
    scaled: Pcm = (np.power(10.0, (lufs - loudness) / 20.0) * pcm).astype(np.float32)
    return scaled
