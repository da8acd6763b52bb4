"""What a run has to answer: the recordings of a data set, and the place of each answer. Called by `fdb.batch`."""

import os
from dataclasses import dataclass
from pathlib import Path

from pplex.fdb.layout import AGENT_TEXT, CLEAN_AGENT_TEXT, CLEAN_OUTPUT, OUTPUT, WORDS, Sample, Task, samples, task_of
from pplex.fdb.metadata import METADATA, read_service, task_with_metadata
from pplex.runtime.audio import FORMATS
from pplex.runtime.errors import ConfigError, SampleError
from pplex.runtime.files import check_writable, is_file, is_folder
from pplex.runtime.offline import Outputs
from pplex.runtime.recordings import recordings_in

RATE_HZ = 16_000  # the benchmark's silero-vad takes any rate for 16 kHz
_BESIDE = {OUTPUT: (AGENT_TEXT, WORDS), CLEAN_OUTPUT: (CLEAN_AGENT_TEXT, f"clean_{WORDS}")}  # an answer's other files
_ANSWERS = {*_BESIDE, *(name for names in _BESIDE.values() for name in names)}


@dataclass(frozen=True)
class Question:
    """A recording to answer. folder: OUT/TASK/ID. facts: the sample's files that the score reads, in the data set.

    role: the file with the agent's persona, if the sample has one of its own.
    """

    name: str  # of the answer: TASK/ID/output.wav
    recording: Path
    task: Task
    folder: Path
    facts: tuple[Path, ...] = ()
    role: Path | None = None

    def persona(self) -> str:
        """The persona in `role`. Raises SampleError."""
        return read_service(self.role).role if self.role else ""

    @property
    def collection(self) -> str:
        """The name of the task's folder, or of the folder of any recordings."""
        folder = Path(self.name).parent.parent
        return str(folder) if folder.name else "recordings"

    @property
    def outputs(self) -> Outputs:
        """The files of the answer: 16 kHz, and the text piece of each frame."""
        name = Path(self.name).name
        return Outputs(str(self.folder / name), str(self.folder / _BESIDE[name][0]), RATE_HZ)

    def check(self) -> None:
        """Raise OutputError if the files of the answer and the facts cannot be written, SampleError as `new_facts`."""
        self.outputs.check()
        for name in self.new_facts():
            check_writable(name)

    @property
    def found(self) -> list[Path]:
        """The files of an answer that exist, with the words that a score has found in it."""
        name = Path(self.name).name
        return [path for path in (self.folder / one for one in (name, *_BESIDE[name])) if is_file(path)]

    def new_facts(self) -> dict[str, bytes]:
        """The facts that are missing in `folder` or differ there: their content, by name. Raises SampleError."""
        try:
            copies = {self.folder / path.name: path.read_bytes() for path in self.facts}
        except OSError as error:
            raise SampleError(
                f"{error.filename} cannot be read: {error.strerror}. Check it and its permissions"
            ) from error
        return {str(to): data for to, data in copies.items() if not is_file(to) or to.read_bytes() != data}


def questions(data: Path, out: Path) -> list[Question]:
    """The recordings of Full-Duplex-Bench in a folder; if it has none of its samples, all recordings below it.

    Raises ConfigError if there are none, AccessError.
    """
    if not is_folder(data):
        raise ConfigError(f"{data} is not a folder. Name the benchmark's data, or a folder of recordings.")
    found = _of_the_benchmark(data, out) or _of_any_folder(data, out)
    if not found:
        raise ConfigError(
            f"{data} holds neither samples of Full-Duplex-Bench (TASK/ID/input.wav) nor recordings "
            f"({', '.join(FORMATS)}). Name the folder of the data."
        )
    return found


def _of_the_benchmark(data: Path, out: Path) -> list[Question]:
    try:
        found = samples(data)
    except ConfigError:
        return []
    return [one for sample in found for one in _of_sample(sample, out)]


def _of_sample(sample: Sample, out: Path) -> list[Question]:
    """The recordings of a sample: of version 1.5 it has two."""
    folder, facts = out / sample.name, sorted(filter(is_file, sample.folder.glob("*.json")))
    kept = tuple(path for path in facts if path.name not in _ANSWERS)
    recordings = {answer: sample.folder / name for name, answer in sample.inputs.items()}
    here = {answer: path for answer, path in recordings.items() if os.path.lexists(path)}  # a broken link is a fault
    of_service = task_with_metadata(sample) is Task.SERVICE
    task, role = (Task.SERVICE, sample.folder / METADATA) if of_service else (sample.task, None)
    return [Question(f"{sample.name}/{name}", path, task, folder, kept, role) for name, path in here.items()]


def _of_any_folder(data: Path, out: Path) -> list[Question]:
    """All recordings below a folder, without answers that were written beside them."""
    found = [path for path in recordings_in(data, out) if path.name not in _ANSWERS]
    names = [path.relative_to(data).with_suffix("") for path in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{data / twice} is the name of two recordings with other suffixes. Rename one of them.")
    return [
        Question(f"{name}/{OUTPUT}", path, task_of(name.parent), out / name)
        for name, path in zip(names, found, strict=True)
    ]
