"""Audio in and out: files and streams of any rate as 24 kHz mono float32, and the loudness of a wav voice.

Called by the command line, by `Runtime.open` for a recorded voice, and by programs.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.containers import LEFT_BYTES, Part, find_parts, is_trailer
from pplex.runtime.errors import AudioError, AudioWarning, OutputError
from pplex.runtime.files import STANDARD_STREAM, check_writable
from pplex.runtime.mixing import Mix, MixChooser
from pplex.runtime.samples import check_samples

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
VOICE_LUFS = -24.0
MIN_VOICE_S = 0.4  # one gating block of ITU-R BS.1770
# A lower rate comes from a damaged header: resampling would make a small file up to 24000 times larger.
MIN_RATE_HZ = 1000
BLOCK = 1 << 12  # samples that libsndfile reads or writes at once; if it fails, the block is lost
UNKNOWN_FRAMES = 1 << 62  # libsndfile gives a larger number if the header has no length
NOTED_LOSS_S = 0.05


def read_audio(source: str | os.PathLike[str] | BinaryIO, rate_hz: int = SAMPLE_RATE_HZ) -> Pcm:
    """Read a whole wav, flac or ogg as mono: [samples] float32 at `rate_hz`. Channels are mixed, and resampled if necessary.

    `source` is a path, "-" for standard input, or an open binary file. Recordings joined in one file are read in order.
    Warns (AudioWarning) about a wrong size in the header, channels that cancel out, and damaged parts. Raises AudioError if
    the file is missing, is not audio, cannot be read to its end, or has no samples. Raises AudioError, too, for samples that
    are not finite or far above full scale.
    """
    name, data = _read_bytes(source)
    heard, notes = [np.zeros(0, np.float32)], []
    for part in find_parts(data):
        pcm, found = _read_part(part, name, sum(map(len, heard)) / rate_hz, rate_hz)
        heard.append(pcm)
        notes += [note for note in (part.note, *found) if note]
    pcm = np.concatenate(heard)
    if not len(pcm):
        raise AudioError(f"{name} {'holds no samples' if data else 'is empty: it holds no samples'}. Give a recording.")
    for note in dict.fromkeys(notes):
        warnings.warn(f"{name}: {note}", AudioWarning, stacklevel=2)
    return pcm


def _read_bytes(source: str | os.PathLike[str] | BinaryIO) -> tuple[str, bytes]:
    """The name for messages, and the content. It is read whole, because libsndfile seeks and a pipe cannot."""
    if not isinstance(source, str | os.PathLike):
        return str(getattr(source, "name", "the audio")), source.read()
    path = os.fspath(source)
    if path == STANDARD_STREAM:
        if sys.stdin is None:
            raise AudioError("Standard input is closed. Name a file.")
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


def _read_part(part: Part, name: str, begins_s: float, rate_hz: int) -> tuple[Pcm, list[str]]:
    """One recording of a file, [samples] at `rate_hz`, and notes for the user. `begins_s`: its start in the file."""
    decoding = _Decoding(part, name, begins_s)
    pcm, mix = decoding.mean()
    if mix.note:
        pcm = decoding.mixed(mix)
    _check_finite(pcm, name, decoding.rate_hz)
    check_samples(pcm, name)
    return _resampled(pcm, name, decoding.rate_hz, rate_hz), [mix.note, decoding.loss]


class _WithoutSeeking(soundfile.SoundFile):
    """Reads without seeking.

    After each block soundfile seeks to its position. That fails in FLAC of unknown length, and hides damage.
    """

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """A file in memory. A damaged header makes libsndfile seek outside the file; such a seek does nothing."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):  # soundfile would print a traceback
            return self.tell()


class _Decoding:
    """Decodes a part from its beginning, possibly more than once, and records where decoding stopped."""

    def __init__(self, part: Part, name: str, begins_s: float):
        self._part, self._name, self._begins_s = part, name, begins_s
        self.rate_hz = SAMPLE_RATE_HZ
        self.loss = ""  # note for the user about samples that could not be decoded

    def mean(self) -> tuple[Pcm, Mix]:
        """The mean of the channels [samples] at the file's rate, and the correct way to mix them."""
        means: list[Pcm] = [np.zeros(0, np.float32)]
        chooser: MixChooser | None = None
        with np.errstate(over="ignore", invalid="ignore"):  # infinite samples are reported later
            for block in self._blocks():
                means.append(block.mean(axis=1))
                if block.shape[1] > 1:
                    chooser = chooser or MixChooser(block.shape[1])
                    chooser.see(block)
            return np.concatenate(means), chooser.choose() if chooser else Mix(1)

    def mixed(self, mix: Mix) -> Pcm:
        """The channels mixed as `mix` says."""
        return np.concatenate([mix.apply(block) for block in self._blocks()])

    def _blocks(self) -> Iterator[Pcm]:
        """Blocks [samples, channels]; the length in a header may be wrong."""
        data, done = _Bytes(self._part.data), 0
        try:
            with _WithoutSeeking(data) as file:
                self.rate_hz = file.samplerate
                for block in self._read(file, data):
                    done += len(block)
                    yield block
                self._check_all_read(file, done, data.tell())
        except soundfile.LibsndfileError as error:
            raise AudioError(self._refusal(error.error_string.strip(" ."), done)) from error

    def _read(self, file: soundfile.SoundFile, data: io.BytesIO) -> Iterator[Pcm]:
        left = file.frames
        while left:
            try:
                block: Pcm = file.read(min(BLOCK, left), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                if file.frames < UNKNOWN_FRAMES or data.tell() < len(self._part.data):
                    raise
                return  # the recorder was killed before it wrote the length
            if not len(block):
                return
            left -= len(block)
            yield block

    def _check_all_read(self, file: soundfile.SoundFile, done: int, position: int) -> None:
        claimed_s, heard_s = file.frames / file.samplerate, done / file.samplerate
        if file.frames < UNKNOWN_FRAMES and claimed_s - heard_s > NOTED_LOSS_S:
            self.loss = f"it is damaged or cut short: only {heard_s:.2f} s of its {claimed_s:.2f} s can be decoded."
        tail = self._part.data[position:]
        if self._part.to_the_end and len(tail) > LEFT_BYTES and not is_trailer(tail):
            raise AudioError(
                f"{self._name} cannot be read to its end: decoding stops at {self._at_s(done):.2f} s, and "
                f"{len(tail):,} of {len(self._part.data):,} bytes are left.\n"
                "Write it again from its source, or as wav."
            )

    def _refusal(self, reason: str, done: int) -> str:
        if not self._at_s(done):
            return f"{self._name} is damaged or not audio ({reason}). Give a wav, flac or ogg file."
        return (
            f"{self._name} is damaged: after {self._at_s(done):.2f} s it cannot be read ({reason}).\n"
            "Cut it there, or write it again from its source."
        )

    def _at_s(self, done: int) -> float:
        return self._begins_s + done / self.rate_hz


def _check_finite(pcm: Pcm, name: str, rate_hz: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(pcm))
    if len(wrong):
        raise AudioError(
            f"{name} holds NaN or infinite samples: {len(wrong)} of {len(pcm)}, "
            f"the first at {wrong[0] / rate_hz:.3f} s.\n"
            "Export it again from its source, or cut them out."
        )


def _resampled(pcm: Pcm, name: str, from_hz: int, to_hz: int) -> Pcm:
    if from_hz < MIN_RATE_HZ:
        raise AudioError(f"{name} is sampled at {from_hz} Hz: give audio of {MIN_RATE_HZ} Hz or more.")
    if from_hz == to_hz:
        return pcm
    resampled: Pcm = soxr.resample(pcm, from_hz, to_hz, quality="HQ")
    return resampled


def check_audio_target(target: str | os.PathLike[str]) -> None:
    """Raise OutputError if audio cannot be written to `target`. Call it before the audio is made."""
    check_writable(target)
    suffix = Path(target).suffix.lower()
    if os.fspath(target) != STANDARD_STREAM and suffix not in FORMATS:
        raise OutputError(f"{target}: the suffix must name the format, one of {', '.join(FORMATS)}.")


def encode_audio(target: str | os.PathLike[str], pcm: npt.NDArray[np.floating], rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """The bytes of a file with `pcm` [samples] at 24 kHz, clipped to [-1, 1]. The suffix names the format ("-": wav).

    rate_hz: of the file. It lasts as long as `pcm`, to the nearest sample. Raises OutputError for an unknown suffix or an
    unwritable folder, AudioError for samples that cannot be encoded.
    """
    check_audio_target(target)
    name = os.fspath(target)
    suffix = ".wav" if name == STANDARD_STREAM else Path(name).suffix.lower()
    if pcm.ndim != 1 or not len(pcm):
        raise AudioError(f"{name}: expected mono samples to write, got an array of shape {list(pcm.shape)}.")
    clipped = np.clip(_at_rate(pcm, rate_hz), -1, 1).astype(np.float32)
    _check_finite(clipped, f"The audio for {name}", SAMPLE_RATE_HZ)
    container, subtype = FORMATS[suffix]
    data = io.BytesIO()  # in memory: libsndfile does not report what a failing file object raises
    with soundfile.SoundFile(data, "w", rate_hz, 1, subtype, format=container) as file:
        for start in range(0, len(clipped), BLOCK):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            file.write(clipped[start : start + BLOCK])
    return data.getvalue()


def _at_rate(pcm: npt.NDArray[np.floating], rate_hz: int) -> npt.NDArray[np.floating]:
    """`pcm` [samples] at 24 kHz, resampled to `rate_hz`."""
    if rate_hz == SAMPLE_RATE_HZ:
        return pcm
    count = max(1, round(len(pcm) * rate_hz / SAMPLE_RATE_HZ))
    resampled = soxr.resample(pcm, SAMPLE_RATE_HZ, rate_hz, quality="HQ")[:count]
    return np.pad(resampled, (0, count - len(resampled)))


def frames(pcm: Pcm, frame_size: int) -> Pcm:
    """Cut `pcm` [samples] into [F, frame_size]; zeros fill the last frame."""
    count = -(-len(pcm) // frame_size)
    return np.pad(pcm, (0, count * frame_size - len(pcm))).reshape(count, frame_size)


def normalize_loudness(pcm: Pcm, lufs: float = VOICE_LUFS) -> Pcm:
    """`pcm` [samples] at 24 kHz scaled to an integrated loudness of `lufs` (ITU-R BS.1770-4); may exceed 1.0.

    Raises AudioError if it is too short or too quiet to measure.
    """
    from pyloudnorm import Meter  # here, because it imports scipy, which takes a second

    if len(pcm) < MIN_VOICE_S * SAMPLE_RATE_HZ:
        raise AudioError(
            f"The recording lasts {len(pcm) / SAMPLE_RATE_HZ:.2f} s, but at least {MIN_VOICE_S} s are needed to measure its "
            "loudness.\n"
            "Give a longer one: some seconds of speech make a good voice."
        )
    loudness = float(Meter(SAMPLE_RATE_HZ).integrated_loudness(pcm))
    if not np.isfinite(loudness):
        raise AudioError("The recording is silent (below -70 LUFS). Give a recording of a person who speaks.")
    # Same as pyloudnorm.normalize.loudness, but without its warning about samples above 1.0: the codec accepts them.
    scaled: Pcm = (np.power(10.0, (lufs - loudness) / 20.0) * pcm).astype(np.float32)
    return scaled
