"""Words by faster-whisper, within the stretches of speech that silero-vad finds. Called by `cli.fdb`.

Whisper alone hears words in silence, and its own filter of silence moves words by up to 0.4 s.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pplex.fdb.measures import Segment
from pplex.fdb.recognition import Recognition
from pplex.fdb.segments import Recording, exact_segments
from pplex.fdb.words import Word
from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import ConfigError
from pplex.runtime.libraries import install_command, load_library
from pplex.validate.speech.detector import VAD_RATE_HZ

PAD_S = 0.03  # of silence, which silero-vad adds on both sides of speech
REPETITIVE = 2.4  # the text compresses better than this if the model repeats itself: Whisper's own limit


class WhisperWords(Recognition):
    """Words of the stretches of speech.

    Raises ConfigError if the model cannot be loaded, LibraryError without faster-whisper.
    """

    def __init__(self, model: str, threads: int | None = None):
        library = load_library(
            "faster_whisper",
            f"--words whisper needs faster-whisper, which is not installed: {install_command('faster_whisper')}",
        )
        super().__init__(f"faster-whisper {_short(model)} within silero-vad's segments", "Whisper")
        try:
            self._model = library.WhisperModel(model, device="cpu", compute_type="auto", cpu_threads=threads or 0)
        except Exception as error:  # the libraries below raise anything: for a name, a network, a damaged file
            raise ConfigError(
                f"The Whisper model {model} cannot be loaded ({' '.join(str(error).split())[:300]}).\n"
                "Name a folder with a model for faster-whisper, or one that it can download: tiny.en, small.en."
            ) from error

    def hear(self, recording: Recording, since_s: float) -> Iterator[Word]:
        since = round(since_s * VAD_RATE_HZ)
        for first, last in exact_segments(recording):
            start = max(first, since)
            if start < last:
                speech = max(first / VAD_RATE_HZ + PAD_S, since_s), last / VAD_RATE_HZ - PAD_S
                yield from self._said(recording.pcm[start:last], start / VAD_RATE_HZ, speech)

    def _said(self, pcm: Pcm, at_s: float, speech: Segment) -> Iterator[Word]:
        """The words in pcm [samples], which begins at `at_s`; none is outside of `speech`."""
        found, _ = self._model.transcribe(
            pcm, language="en", temperature=0.0, condition_on_previous_text=False, word_timestamps=True
        )
        for part in found:
            words: list[Any] = part.words if part.compression_ratio < REPETITIVE else []
            for word in words:
                start_s, end_s = (min(max(speech[0], at_s + float(time)), speech[1]) for time in (word.start, word.end))
                yield Word(word.word.strip(), start_s, end_s)


def _short(model: str) -> str:
    """A model's name; of a folder, its last part."""
    return Path(model).name if Path(model).is_dir() else model
