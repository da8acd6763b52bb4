"""Recordings that a user names, as files and folders, and the names of their answers.

Called by `cli.talk` and `fdb.batch`.
"""

from collections.abc import Iterable
from pathlib import Path

from pplex.runtime.audio import FORMATS
from pplex.runtime.errors import AudioError, OutputError
from pplex.runtime.files import STANDARD_STREAM, files_below, is_folder
from pplex.runtime.offline import Outputs


def recordings_in(folder: Path, out: Path) -> list[Path]:
    """The recordings in a folder and below it, sorted, without those in `out` if that is a folder in it.

    Raises AccessError.
    """
    answers = out.resolve() if out.resolve() != folder.resolve() else None
    found = (path for path in files_below(folder) if path.suffix.lower() in FORMATS)
    return [path for path in found if answers not in path.resolve().parents]


def answers_in(out: Path, sources: Iterable[str], rate_hz: int) -> dict[str, Outputs]:
    """For each recording of files and folders: its answer in `out`, which has the name of the recording.

    A folder's recordings keep their subfolders; answers that are in it are none of them. Raises AudioError for a folder
    without recordings, OutputError for two recordings of one name.
    """
    named: dict[Path, Path] = {}
    for recording, name in (found for source in sources for found in _named(source, out)):
        other = named.setdefault(name, recording)
        if other != recording:
            raise OutputError(
                f"{other} and {recording} would both be answered in {out / name}.wav. Run them with another --out each."
            )
    return {
        str(recording): Outputs(f"{out / name}.wav", f"{out / name}.json", rate_hz) for name, recording in named.items()
    }


def _named(source: str, out: Path) -> list[tuple[Path, Path]]:
    """The recordings of a file or folder, each with the name of its answer, without a suffix."""
    folder = Path(source)
    if source == STANDARD_STREAM:
        raise AudioError(f"Standard input is one recording: --input-wav {STANDARD_STREAM}")
    if not is_folder(folder):
        return [(folder, Path(folder.stem))]
    found = recordings_in(folder, out)
    if not found:
        raise AudioError(f"{source} holds no recording ({', '.join(FORMATS)}). Name a folder of recordings, or files.")
    return [(path, path.relative_to(folder).with_suffix("")) for path in found]
