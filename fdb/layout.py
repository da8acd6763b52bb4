"""The folders of Full-Duplex-Bench, and the files of a sample. Called by `fdb.batch` and `fdb.score`.

DATA/TASK/ID/input.wav, DATA/TASK/ID/turn_taking.json, ...           the benchmark's data, versions 1.0 and 1.5
OUT/TASK/ID/output.wav, clean_output.wav, agent_text.json, output.json   what an agent answered, and its words
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pplex.runtime.errors import ConfigError

INPUT, CLEAN_INPUT = "input.wav", "clean_input.wav"  # the latter in version 1.5: without what interferes
OUTPUT, CLEAN_OUTPUT = "output.wav", "clean_output.wav"  # 16 kHz, as long as the input
AGENT_TEXT, WORDS = "agent_text.json", "output.json"
CLEAN_AGENT_TEXT = "clean_agent_text.json"


class Task(StrEnum):
    """What a sample asks of an agent."""

    PAUSE = "pause handling"
    BACKCHANNEL = "backchannel"
    TURN_TAKING = "turn-taking"
    INTERRUPTION = "user interruption"
    UNKNOWN = "unknown"  # any folder of recordings


# By the names of the benchmark's folders; what is before and after differs between its versions.
_TASKS = (
    ("pause_handling", Task.PAUSE),
    ("backchannel", Task.BACKCHANNEL),
    ("turn_taking", Task.TURN_TAKING),
    ("interruption", Task.INTERRUPTION),
)


@dataclass(frozen=True)
class Sample:
    """One sample: `folder` is DATA/TASK/ID, and `name` TASK/ID."""

    folder: Path
    name: str
    task: Task

    @property
    def collection(self) -> str:
        """The name of the task's folder, such as candor_turn_taking."""
        return self.name.rpartition("/")[0]

    @property
    def inputs(self) -> dict[str, str]:
        """The recordings to answer, and the name of each answer."""
        return {CLEAN_INPUT: CLEAN_OUTPUT, INPUT: OUTPUT}


def samples(data: Path) -> list[Sample]:
    """The samples below a folder, in the order of their names and numbers; it may also be the folder of one task.

    Raises ConfigError if there are none.
    """
    names = {folder: _name(folder, data) for folder in _folders(data)}
    found = [Sample(folder, str(name), task_of(name)) for folder, name in names.items()]
    if not found:
        raise ConfigError(f"{data} has no samples of Full-Duplex-Bench: folders TASK/ID with {INPUT} or {WORDS}.")
    return sorted(found, key=lambda one: (one.collection, _number(one.folder.name)))


def _name(folder: Path, data: Path) -> Path:
    """TASK/ID, also if `data` is the folder of one task."""
    name = folder.relative_to(data)
    return name if len(name.parts) > 1 else Path(data.resolve().name) / name


def task_of(name: Path) -> Task:
    """The task, by the names of the folders."""
    text = str(name).lower()
    return next((task for key, task in _TASKS if key in text), Task.UNKNOWN)


def _folders(data: Path) -> Iterator[Path]:
    for folder in data.rglob("*"):
        if folder.is_dir() and any((folder / file).is_file() for file in (INPUT, WORDS, OUTPUT)):
            yield folder


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 60, name)
