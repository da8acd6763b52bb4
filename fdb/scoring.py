"""How to score: where words come from, people's backchannels, a judge, a comparison of voices. Called by `fdb` and `cli`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pplex.fdb.layout import AGENTS_SIDE, OUTPUT, Sample, words_file
from pplex.fdb.rubrics import Rubric
from pplex.fdb.segments import Recording
from pplex.fdb.words import Transcript, read_transcript
from pplex.runtime.errors import SampleError
from pplex.runtime.files import is_file

T = TypeVar("T")
People = Mapping[str, tuple[float, ...]]  # by a sample's id: how people's backchannels are spread over it


class WordSource(Protocol):
    """The words after a moment in a recording of a sample, the agent's answer or another one. Raises SampleError."""

    def __call__(self, sample: Sample, since_s: float, wav: str = OUTPUT) -> Transcript: ...


class Grader(Protocol):
    """Answers a question about what was said, or raises SampleError."""

    def __call__(self, rubric: Rubric[T], asked: Mapping[str, Any]) -> T: ...


class VoiceComparison(Protocol):
    """How alike the voice of an answer and the one that it should have are; None if it has too little speech."""

    name: str

    def __call__(self, answer: Recording) -> float | None: ...


def stored_words(sample: Sample, since_s: float, wav: str = OUTPUT) -> Transcript:
    """The words in the sample's output.json, all of them: the benchmark has cropped them already. Raises SampleError."""
    path = sample.file(words_file(wav))
    if not is_file(path):
        agent = ", or use --words agent" if wav in AGENTS_SIDE else ""
        raise SampleError(f"{path.name} is missing: make it with --words whisper or parakeet{agent}")
    return read_transcript(path)


@dataclass(frozen=True)
class Scoring:
    """How to score. `data`: the folder of the benchmark's data; None if its files are beside the answers."""

    words: WordSource = stored_words
    data: Path | None = None
    people: People | None = None
    judge: Grader | None = None
    similarity: VoiceComparison | None = None
