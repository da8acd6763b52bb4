"""metadata.json of a sample: ServiceDuplexBench and version 1.5 of Full-Duplex-Bench have one. Called by `fdb`."""

from pathlib import Path
from typing import Any, NamedTuple

from pplex.fdb.layout import Sample, Task, overlap_of
from pplex.fdb.words import read_json, seconds, whole
from pplex.runtime.errors import SampleError
from pplex.runtime.files import is_file

METADATA = "metadata.json"
ROLE, QUESTION = "prompt_text", "question_text"
EVENT = "timestamps"  # of version 1.5


class Service(NamedTuple):
    """The agent's role, as its system prompt, and what the user says."""

    role: str
    question: str


def read_service(path: Path) -> Service:
    """The facts of a sample of ServiceDuplexBench. Raises SampleError."""
    found = _read(path)
    wrong = [key for key in (ROLE, QUESTION) if not isinstance(found.get(key), str)]
    if wrong:
        raise SampleError(f"{path.name} has no text {' and no text '.join(wrong)}")
    return Service(whole(found[ROLE]), whole(found[QUESTION]))


def read_overlap(path: Path) -> tuple[float, float]:
    """Start and end in seconds of the speech that overlaps, in a sample of version 1.5. Raises SampleError."""
    return seconds(_read(path), path.name, EVENT)


def task_with_metadata(sample: Sample) -> Task:
    """The task, by the keys of metadata.json if there is one. UNKNOWN has no measures.

    With a damaged file it is the task of version 1.5 by its folder, or else ServiceDuplexBench; it cannot be read then.
    """
    path, overlap = sample.file(METADATA), overlap_of(sample.name)
    if not is_file(path):
        return sample.task
    try:
        keys = _read(path).keys()
    except SampleError:
        return Task.SERVICE if overlap is Task.UNKNOWN else overlap
    if {ROLE, QUESTION} & keys:
        return Task.SERVICE
    return overlap if EVENT in keys else Task.UNKNOWN


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise SampleError(f"{path.name} has no keys")
    return found
