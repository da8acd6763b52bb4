"""The words of an agent with their times, and a sample's events, as files. Called by `fdb.score` and the makers of words.

output.json is {"text", "chunks": [{"text", "timestamp": [start_s, end_s]}]}, as in the benchmark; ours has more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.runtime.errors import AccessError, SampleError
from pplex.runtime.files import is_file, read_text, write_files

LONGEST_S = 1e6  # a time beyond it is a mistake
BY, OF = "words_by", "audio_sha256"  # our additions to output.json


@dataclass(frozen=True)
class Word:
    """A word, and the seconds from its start to its end in the recording."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """Words in order, `by` whom or what ("" if the file does not say), and the SHA-256 `of` the audio ("" if unknown)."""

    words: tuple[Word, ...]
    by: str = ""
    of: str = ""

    @property
    def text(self) -> str:
        return " ".join(word.text.strip() for word in self.words)


def read_transcript(path: Path) -> Transcript:
    """The words in an output.json. Raises SampleError."""
    data = read_json(path)
    chunks = data.get("chunks") if isinstance(data, dict) else None
    if not isinstance(chunks, list):
        raise SampleError(f'{path.name} has no list "chunks" of words')
    words = tuple(_word(chunk, path.name, i) for i, chunk in enumerate(chunks))
    return Transcript(words, *(str(data.get(key, "")) for key in (BY, OF)))


def write_transcript(path: Path, transcript: Transcript) -> None:
    """Write an output.json that the benchmark's own script can read too. Raises OutputError."""
    chunks = [{"text": word.text, "timestamp": [word.start_s, word.end_s]} for word in transcript.words]
    data = {"text": transcript.text, "chunks": chunks, BY: transcript.by, OF: transcript.of}
    write_files({str(path): (json.dumps(data, ensure_ascii=False) + "\n").encode()})


def read_event(path: Path) -> tuple[float, float]:
    """Start and end of the first event in turn_taking.json or interrupt.json, in seconds. Raises SampleError."""
    return seconds(first_event(path), path.name)


def first_event(path: Path) -> dict[str, Any]:
    """The first event in such a file. Raises SampleError."""
    data = read_json(path)
    if not isinstance(data, list) or not data or not isinstance(data[0], dict):
        raise SampleError(f"{path.name} has no event")
    return data[0]


def read_json(path: Path) -> Any:
    """The data in a file. Raises SampleError."""
    try:
        if not is_file(path):
            raise SampleError(f"{path.name} is missing")
        return json.loads(read_text(path))
    except AccessError as error:
        raise SampleError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{path.name} is damaged: {error}") from error


def _word(chunk: Any, name: str, number: int) -> Word:
    if not isinstance(chunk, dict) or not isinstance(chunk.get("text"), str):
        raise SampleError(f"{name}: word {number + 1} has no text")
    return Word(whole(chunk["text"]), *seconds(chunk, f"{name}: word {number + 1}"))


def whole(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can have, but which cannot be written anywhere."""
    return text.encode(errors="replace").decode()


def seconds(entry: dict[str, Any], where: str, key: str = "timestamp") -> tuple[float, float]:
    """Start and end under a key. Raises SampleError."""
    times = entry.get(key)
    if not isinstance(times, Sequence) or len(times) != 2 or not all(map(_is_time, times)):
        raise SampleError(f"{where} has no start and end in seconds")
    return float(times[0]), float(times[1])


def _is_time(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -LONGEST_S < value < LONGEST_S  # also without NaN
