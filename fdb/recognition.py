"""Words by speech recognition, kept beside the answers as output.json. Base of `fdb.whisper` and `fdb.parakeet`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from pplex.fdb.layout import AGENTS_SIDE, OUTPUT, Sample, words_file
from pplex.fdb.segments import Recording, read_recording
from pplex.fdb.words import Transcript, Word, read_transcript, write_transcript
from pplex.runtime.errors import ConfigError, SampleError
from pplex.runtime.files import is_file


class Recognition(ABC):
    """Writes a recording's words, unless this model has written them for the same recording.

    The user's words by another program, beside the answer or in the data, are taken as they are.
    """

    def __init__(self, name: str, short: str):
        """name: for reports. short: of the model's kind, for messages."""
        self.name, self._short = name, short

    @abstractmethod
    def hear(self, recording: Recording, since_s: float) -> Iterable[Word]:
        """The words after `since_s`, with times in the recording. May raise anything."""

    def check(self, samples: Iterable[Sample]) -> None:
        """Raise ConfigError if another program's words of the agent would be replaced."""
        paths = [one.folder / words_file(wav) for one in samples for wav in AGENTS_SIDE]
        others = [path for path in paths if is_file(path) and _is_foreign(path)]
        if others:
            raise ConfigError(
                f"{len(others)} samples have words that another program made, such as {others[0]}. They are not replaced: "
                "leave --words out to use these words, or delete the files."
            )

    def __call__(self, sample: Sample, since_s: float, wav: str = OUTPUT) -> Transcript:
        """The words after `since_s` in a recording. Raises SampleError; OutputError if they cannot be written."""
        recording, name = read_recording(sample.file(wav)), words_file(wav)
        there = read_transcript(sample.file(name)) if is_file(sample.file(name)) else None
        if there and (there.by, there.of) == (self.name, recording.sha256):
            return there
        if there and not there.by:
            if wav in AGENTS_SIDE:
                raise SampleError(f"{name} is of another program, and is kept")
            return there
        try:
            words = tuple(self.hear(recording, since_s))
        except Exception as error:  # of the libraries below
            raise SampleError(f"{self._short} failed on {wav}: {type(error).__name__}: {error}") from error
        made = Transcript(words, self.name, recording.sha256)
        write_transcript(sample.folder / name, made)
        return made


def _is_foreign(path: Path) -> bool:
    try:
        return not read_transcript(path).by
    except SampleError:
        return False  # this sample fails by itself
