"""What `fdb run` recorded beside its answers, for the score. Called by `fdb.score` and `cli.fdb_score`."""

from pathlib import Path
from typing import Any, NamedTuple

from pplex.fdb.record import RECORD, VOICE_FILE, recorded_voice
from pplex.fdb.words import read_json
from pplex.runtime.errors import SampleError
from pplex.runtime.files import is_file, is_folder


class RunRecord(NamedTuple):
    """The settings, and what is still there of the run: the folder of the data, and the recording of the agent's voice."""

    settings: dict[str, Any]
    data: Path | None = None
    voice: Path | None = None


def run_record(folder: Path) -> RunRecord:
    """The record in a folder of answers, or above the folder of one task; empty if another program made them."""
    try:
        found = read_json(_path(folder))
        settings, data, voice = dict(found["settings"]), Path(found["notes"]["data"]), found["notes"].get(VOICE_FILE)
    except (SampleError, LookupError, TypeError, ValueError):
        return RunRecord({})
    return RunRecord(
        {f"run: {name}": value for name, value in settings.items()},
        data if is_folder(data) else None,
        Path(voice) if isinstance(voice, str) and _is_voice(Path(voice), settings) else None,
    )


def unanswered(folder: Path) -> list[str]:
    """The samples TASK/ID in this folder that the run was to answer, and has not: it was stopped."""
    path = _path(folder)
    try:
        names = [str(name) for name in dict(read_json(path)["recordings"])]
    except (SampleError, LookupError, TypeError, ValueError):
        return []
    root = path.parent
    inside = (name for name in names if folder.resolve() in (root / name).resolve().parents)
    return sorted({str(Path(name).parent) for name in inside if not is_file(root / name)})


def _path(folder: Path) -> Path:
    return next(filter(is_file, (folder / RECORD, folder.resolve().parent / RECORD)), folder / RECORD)


def _is_voice(path: Path, settings: dict[str, Any]) -> bool:
    """Whether it is there, and still the recording of the run."""
    return is_file(path) and settings.get("voice") == recorded_voice(path)
