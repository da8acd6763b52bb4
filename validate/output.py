"""A report's folder: the files of a validation or a comparison, written together.

Called by `cli.validation` and `cli.fdb`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pplex.runtime.errors import OutputError
from pplex.runtime.files import check_writable, write_files
from pplex.validate.report.compare import Comparison
from pplex.validate.report.html import to_html
from pplex.validate.report.markdown import to_markdown
from pplex.validate.report.schema import REPORT_FILE
from pplex.validate.validation import SIDES, Validation

SOUNDS_FOLDER = "sounds"
VALIDATION_SOUNDS = tuple(f"*-{side}.wav" for side in SIDES)


def report_files(validation: Validation) -> dict[str, bytes]:
    """Files by name: the data, the page, the comment for a pull request, and the recordings."""
    report = validation.report
    return {
        REPORT_FILE: json_bytes(report.to_dict()),
        "report.html": to_html(report).encode(),
        "report.md": to_markdown(report).encode(),
        **{f"{SOUNDS_FOLDER}/{name}": data for name, data in validation.sounds.items()},
    }


def comparison_files(comparison: Comparison) -> dict[str, bytes]:
    """Files by name, like those of a report."""
    return {
        "comparison.json": json_bytes(comparison.to_dict()),
        "comparison.html": comparison.to_html().encode(),
        "comparison.md": comparison.to_markdown().encode(),
    }


def check_folder(folder: Path) -> None:
    """Raise OutputError if `write_folder` could not write there; called before the long work."""
    there = os.path.exists(folder)
    _made(folder)
    check_writable(folder / REPORT_FILE)
    if not there:
        folder.rmdir()  # `write_folder` makes it again


def write_folder(folder: Path, files: Mapping[str, bytes], recordings: Sequence[str] = VALIDATION_SOUNDS) -> None:
    """Write files by name in a folder, all or none; removes recordings of an earlier report, which have these names.

    Raises OutputError.
    """
    for name in files:
        _made((folder / name).parent)
    write_files({str(folder / name): data for name, data in files.items()})
    if REPORT_FILE in files:
        for names in recordings:
            for path in (folder / SOUNDS_FOLDER).glob(names):
                if f"{SOUNDS_FOLDER}/{path.name}" not in files:
                    path.unlink()


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot create the folder {folder}: {error.strerror}. Name another --report.") from error


def json_bytes(data: Any) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
