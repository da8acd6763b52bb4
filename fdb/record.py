"""The record of a run, OUT/fdb_run.json: with which settings OUT was answered, and which recordings. Called by `fdb.batch`.

A run that was stopped goes on from it. It holds the SHA-256 of each recording; an answer whose files are there is complete.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from pplex.fdb.questions import Question
from pplex.runtime.errors import ConfigError
from pplex.runtime.files import is_file, read_text, write_files

RECORD = "fdb_run.json"
VOICE_FILE = "voice_file"  # the note of a voice that is a recording
SCHEMA = 1


@dataclass
class Record:
    """settings: name to value, as JSON has it. recordings: SHA-256 by the name of the answer. notes: not compared."""

    settings: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    recordings: dict[str, str] = field(default_factory=dict)

    def save(self, out: Path) -> None:
        """Write it. Raises OutputError."""
        content = {"schema": SCHEMA, "settings": self.settings, "notes": self.notes, "recordings": self.recordings}
        write_files({str(out / RECORD): (json.dumps(content, indent=1) + "\n").encode()})


def open_record(out: Path, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> Record:
    """The record in OUT, or a new one. Raises ConfigError if OUT has answers with other settings."""
    record = Record(json.loads(json.dumps(settings)), dict(notes))
    if not is_file(out / RECORD):
        return record
    before, recordings = _read(out / RECORD)
    if not any(is_file(out / name) for name in recordings):
        return record
    different = [name for name in {**before, **record.settings} if before.get(name) != record.settings.get(name)]
    if different:
        rows = (f"- {name}: {before.get(name)!r} there, {record.settings.get(name)!r} here" for name in different)
        advice = "Name another --out, or the same settings."
        raise ConfigError("\n".join((f"{out} has answers with other settings:", *rows, advice)))
    record.recordings = recordings
    return record


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and recordings of a record."""
    try:
        found = json.loads(read_text(path))
        schema, settings, recordings = found["schema"], dict(found["settings"]), dict(found["recordings"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}). Name another --out, or remove that folder.") from error
    if schema != SCHEMA:
        raise ConfigError(f"{path} was written by another version (schema {schema}). Name another --out.")
    return settings, recordings


def check_own(record: Record, questions: Iterable[Question]) -> None:
    """Raise ConfigError if an answer would replace files that no run with this record has written."""
    foreign = [path for one in questions if one.name not in record.recordings for path in one.found]
    if foreign:
        raise ConfigError(
            f"{foreign[0]} exists ({len(foreign)} such files), but this command did not write it. Name another --out, or "
            "move them away."
        )


def is_complete(question: Question, samples: int) -> bool:
    """Whether the files of an answer are there, and the audio has `samples` samples."""
    try:
        with open(question.outputs.wav, "rb") as file:  # soundfile takes no name that is not UTF-8
            has_sound = soundfile.info(file).frames == samples
    except (OSError, soundfile.LibsndfileError):
        return False
    return has_sound and is_file(Path(question.outputs.text))


def recorded_voice(path: Path) -> str:
    """The setting of a voice that is a recording. Raises OSError."""
    return f"a recording, {digest_of(path)}"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
