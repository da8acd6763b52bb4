"""Speech in an agent's recording, by silero-vad with its own settings, as in the benchmark. Called by `fdb`."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pplex.fdb.measures import Segment
from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import read_audio
from pplex.runtime.errors import AudioError, SampleError
from pplex.runtime.files import is_file
from pplex.validate.speech.detector import VAD_RATE_HZ, load_silero


@dataclass(frozen=True)
class Recording:
    """pcm [samples] at 16 kHz, and the SHA-256 of its file."""

    pcm: Pcm
    sha256: str

    @property
    def seconds(self) -> float:
        return len(self.pcm) / VAD_RATE_HZ


def read_recording(path: Path) -> Recording:
    """A recording, resampled to 16 kHz if it has another rate. Raises SampleError."""
    if not is_file(path):
        raise SampleError(f"{path.name} is missing")
    try:
        pcm = read_audio(path, VAD_RATE_HZ)
        return Recording(pcm, hashlib.sha256(path.read_bytes()).hexdigest())
    except AudioError as error:
        raise SampleError(str(error).replace(str(path), path.name)) from error


def rounded_segments(recording: Recording) -> tuple[Segment, ...]:
    """Speech, with times rounded to 0.1 s: the benchmark compares these."""
    return tuple((one["start"], one["end"]) for one in _search()(recording.pcm, return_seconds=True))


def segments_s(recording: Recording) -> list[Segment]:
    """Speech, with times in seconds that are not rounded."""
    return [(start / VAD_RATE_HZ, end / VAD_RATE_HZ) for start, end in exact_segments(recording)]


def exact_segments(recording: Recording) -> list[tuple[int, int]]:
    """Speech, as the first sample and the one after the last."""
    return [(one["start"], one["end"]) for one in _search()(recording.pcm)]


_search = cache(load_silero)
