"""Words by faster-whisper, within the stretches of speech that silero-vad finds. Called by `cli.fdb`.

Whisper alone hears words in silence, and its own filter of silence moves words by up to 0.4 s.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pplex.fdb.layout import OUTPUT, WORDS, Sample
from pplex.fdb.measures import Segment
from pplex.fdb.segments import Recording, exact_segments, read_recording
from pplex.fdb.words import Transcript, Word, read_transcript, write_transcript
from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import ConfigError, SampleError
from pplex.runtime.files import is_file
from pplex.runtime.libraries import install_command, load_library
from pplex.validate.speech.detector import VAD_RATE_HZ

PAD_S = 0.03  # of silence, which silero-vad adds on both sides of speech
REPETITIVE = 2.4  # the text compresses better than this if the model repeats itself: Whisper's own limit


class WhisperWords:
    """Writes output.json of a sample, unless this model has written it for the same recording.

    Raises ConfigError if the model cannot be loaded, LibraryError without faster-whisper.
    """

    def __init__(self, model: str, threads: int | None = None):
        library = load_library(
            "faster_whisper",
            f"--words whisper needs faster-whisper, which is not installed: {install_command('faster_whisper')}",
        )
        self.name = f"faster-whisper {_short(model)} within silero-vad's segments"
        try:
            self._model = library.WhisperModel(model, device="cpu", compute_type="auto", cpu_threads=threads or 0)
        except Exception as error:  # the libraries below raise anything: for a name, a network, a damaged file
            raise ConfigError(
                f"The Whisper model {model} cannot be loaded ({' '.join(str(error).split())[:300]}).\n"
                "Name a folder with a model for faster-whisper, or one that it can download: tiny.en, small.en."
            ) from error

    def check(self, samples: Iterable[Sample]) -> None:
        """Raise ConfigError if another program's words would be replaced."""
        others = [one.name for one in samples if is_file(one.folder / WORDS) and _is_foreign(one.folder / WORDS)]
        if others:
            raise ConfigError(
                f"{len(others)} samples have an {WORDS} that another program made, such as {others[0]}. It is not replaced: "
                "leave --words out to use these words, or delete the files."
            )

    def __call__(self, sample: Sample, since_s: float) -> Transcript:
        """The words after `since_s`. Raises SampleError; OutputError if they cannot be written."""
        recording, path = read_recording(sample.folder / OUTPUT), sample.folder / WORDS
        if is_file(path):
            there = read_transcript(path)
            if (there.by, there.of) == (self.name, recording.sha256):
                return there
            if not there.by:
                raise SampleError(f"{WORDS} is of another program, and is kept")
        try:
            words = tuple(self._words(recording, since_s))
        except Exception as error:  # of the libraries below
            raise SampleError(f"Whisper failed on {OUTPUT}: {type(error).__name__}: {error}") from error
        made = Transcript(words, self.name, recording.sha256)
        write_transcript(path, made)
        return made

    def _words(self, recording: Recording, since_s: float) -> Iterator[Word]:
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


def _is_foreign(path: Path) -> bool:
    try:
        return not read_transcript(path).by
    except SampleError:
        return False  # this sample fails by itself


def _short(model: str) -> str:
    """A model's name; of a folder, its last part."""
    return Path(model).name if Path(model).is_dir() else model
