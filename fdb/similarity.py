"""How alike an agent's voice is to the voice that it should have: the cosine of two embeddings. Called by `fdb.score`."""

from pathlib import Path
from typing import Protocol

import numpy as np

from pplex.fdb.segments import Recording, exact_segments, read_recording
from pplex.runtime.arrays import Floats, Pcm
from pplex.runtime.errors import ConfigError, SampleError
from pplex.validate.speech.detector import VAD_RATE_HZ

LEAST_SPEECH_S = 1.0  # less says little about a voice, and WavLM needs 0.3 s


class Embedder(Protocol):
    """Makes an embedding [D] of speech [samples] at 16 kHz; its `name` is shown with every figure."""

    name: str

    def __call__(self, pcm: Pcm) -> Floats: ...


class Similarity:
    """Compares answers with `voice`, a recording of the voice that the agent should have. Raises ConfigError."""

    def __init__(self, embed: Embedder, voice: Path):
        self.name, self._embed = embed.name, embed
        try:
            heard = speech_in(read_recording(voice))
        except SampleError as error:
            raise ConfigError(f"The recording of the voice cannot be used: {error}") from error
        if heard is None:
            raise ConfigError(
                f"{voice} has less than {LEAST_SPEECH_S:g} s of speech. Name a longer recording: --voice FILE"
            )
        self._voice = embed(heard)

    def __call__(self, answer: Recording) -> float | None:
        """The cosine, -1 to 1; None if the answer has less than LEAST_SPEECH_S of speech. Raises SampleError."""
        heard = speech_in(answer)
        if heard is None:
            return None
        try:
            return cosine(self._voice, self._embed(heard))
        except Exception as error:  # of the libraries of models
            raise SampleError(f"the voices were not compared: {type(error).__name__}: {error}") from error


def speech_in(recording: Recording) -> Pcm | None:
    """The speech alone [samples] at 16 kHz, by silero-vad; None if it is shorter than LEAST_SPEECH_S."""
    parts = [recording.pcm[start:end] for start, end in exact_segments(recording)]
    length = sum(map(len, parts))
    return np.concatenate(parts) if length >= LEAST_SPEECH_S * VAD_RATE_HZ else None


def cosine(a: Floats, b: Floats) -> float:
    """Raises ValueError for an embedding that is 0 or not finite."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not 0 < size < np.inf:  # false for NaN, too
        raise ValueError("an embedding is 0 or not finite")
    return float(a @ b) / size
