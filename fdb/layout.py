"""The folders of Full-Duplex-Bench, and the files of a sample. Called by `fdb.batch` and `fdb.score`.

DATA/TASK/ID/input.wav, DATA/TASK/ID/turn_taking.json, ...           the benchmark's data, versions 1.0 and 1.5
DATA/ID/input.wav, DATA/ID/metadata.json                             ServiceDuplexBench; its task is the name of DATA
OUT/TASK/ID/output.wav, clean_output.wav, agent_text.json, output.json   what an agent answered, and its words
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pplex.runtime.errors import ConfigError
from pplex.runtime.files import folders_below, is_file

INPUT, CLEAN_INPUT = "input.wav", "clean_input.wav"  # the latter in version 1.5: without what interferes
OUTPUT, CLEAN_OUTPUT = "output.wav", "clean_output.wav"  # 16 kHz, as long as the input
AGENT_TEXT, WORDS = "agent_text.json", "output.json"
CLEAN_AGENT_TEXT = "clean_agent_text.json"
AGENTS_SIDE = (OUTPUT, CLEAN_OUTPUT)
CLEAN_WORDS = "clean_output.json"


class Task(StrEnum):
    """What a sample asks of an agent."""

    PAUSE = "pause handling"
    BACKCHANNEL = "backchannel"
    TURN_TAKING = "turn-taking"
    INTERRUPTION = "user interruption"
    UNKNOWN = "unknown"  # any folder of recordings
    OVERLAP_INTERRUPTION = "user interruption, version 1.5"
    OVERLAP_BACKCHANNEL = "user backchannel, version 1.5"
    OVERLAP_OTHER = "talking to other, version 1.5"
    OVERLAP_BACKGROUND = "background speech, version 1.5"
    SERVICE = "service dialogue"  # of ServiceDuplexBench: metadata.json has the agent's role


# By the names of the benchmark's folders; what is before and after differs between its versions.
_TASKS = (
    ("pause_handling", Task.PAUSE),
    ("backchannel", Task.BACKCHANNEL),
    ("turn_taking", Task.TURN_TAKING),
    ("interruption", Task.INTERRUPTION),
)
# Folders of version 1.5, whose samples have a metadata.json.
_OVERLAPS = (
    ("user_interruption", Task.OVERLAP_INTERRUPTION),
    ("user_backchannel", Task.OVERLAP_BACKCHANNEL),
    ("talking_to_other", Task.OVERLAP_OTHER),
    ("background_speech", Task.OVERLAP_BACKGROUND),
)
OVERLAPS = tuple(task for _, task in _OVERLAPS)


@dataclass(frozen=True)
class Sample:
    """One sample: `folder` is DATA/TASK/ID, and `name` TASK/ID."""

    folder: Path
    name: str
    task: Task
    data: Path | None = None  # the benchmark's data, if its files are not all beside the answers

    def file(self, name: str) -> Path:
        """A file of the sample, beside the answer or, if it is not the agent's, in the data. It need not exist."""
        if name in (*AGENTS_SIDE, WORDS, CLEAN_WORDS):
            return self.folder / name
        folders = (self.data, self.data.parent) if self.data else ()  # the data may be the folder of one task
        places = [self.folder / name, *(folder / self.name / name for folder in folders)]
        return next(filter(is_file, places), places[0])

    @property
    def collection(self) -> str:
        """The name of the task's folder, such as candor_turn_taking."""
        return self.name.rpartition("/")[0]

    @property
    def inputs(self) -> dict[str, str]:
        """The recordings to answer, and the name of each answer."""
        return {CLEAN_INPUT: CLEAN_OUTPUT, INPUT: OUTPUT}


def samples(folder: Path, data: Path | None = None) -> list[Sample]:
    """The samples below a folder, in the order of their names and numbers; it may also be the folder of one task.

    data: where the benchmark's files of these samples are, if they are not there. Raises ConfigError if there are none,
    AccessError.
    """
    names = {below: _name(below, folder) for below in _folders(folder)}
    found = [Sample(below, str(name), task_of(name), data) for below, name in names.items()]
    if not found:
        raise ConfigError(f"{folder} has no samples of Full-Duplex-Bench: folders TASK/ID with {INPUT} or {WORDS}.")
    return sorted(found, key=lambda one: (one.collection, _number(one.folder.name)))


def _name(folder: Path, data: Path) -> Path:
    """TASK/ID, also if `data` is the folder of one task."""
    name = folder.relative_to(data)
    return name if len(name.parts) > 1 else Path(data.resolve().name) / name


def task_of(name: Path) -> Task:
    """The task, by the names of the folders."""
    text = str(name).lower()
    return next((task for key, task in _TASKS if key in text), Task.UNKNOWN)


def overlap_of(name: str) -> Task:
    """The task of version 1.5, by the names of the folders; UNKNOWN if it has no such folder."""
    return next((task for key, task in _OVERLAPS if key in name.lower()), Task.UNKNOWN)


def words_file(wav: str) -> str:
    """The file with the words of a recording, such as output.json of output.wav."""
    return f"{Path(wav).stem}.json"


def _folders(data: Path) -> Iterator[Path]:
    """Folders with a file of a sample. A folder or a broken link of this name counts: it becomes a fault of the sample."""
    for folder in folders_below(data):
        if any(os.path.lexists(folder / file) for file in (INPUT, WORDS, OUTPUT)):
            yield folder


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 60, name)
