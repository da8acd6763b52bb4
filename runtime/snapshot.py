"""A saved session: everything that its next frame depends on, in memory or in a file. Called by `runtime.session`."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pplex.runtime.arrays import Array
from pplex.runtime.bundle import TOKENIZER_FILE, Bundle
from pplex.runtime.errors import AccessError, OutputError, SnapshotError
from pplex.runtime.voice_file import is_voices_file

FORMAT = "pplex-export snapshot 1"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One session between two frames: `arrays` by name, `facts` for JSON, and the bundle that can continue it."""

    bundle: str
    facts: Mapping[str, Any]
    arrays: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, complete or not at all. Raises OutputError.

        It holds what was said: keep it as safe as a recording.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.part")
        metadata = {
            "format": FORMAT,
            "bundle": self.bundle,
            "facts": json.dumps(self.facts, sort_keys=True, default=_plain),
        }
        try:
            save_file(dict(self.arrays), partial, {**metadata, "sha256": self._digest(metadata)})
            partial.replace(target)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink()
            raise OutputError(f"{target} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Snapshot":
        """Read what `save` wrote. Raises SnapshotError if it is damaged or something else, AccessError."""
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        except FileNotFoundError as error:
            raise SnapshotError(f"{path} does not exist.") from error
        except OSError as error:
            raise AccessError(f"{path} cannot be read: {error}") from error
        except SafetensorError as error:
            raise SnapshotError(f"{path} is not a snapshot, or it is damaged: {error}. Copy it again.") from error
        if metadata.get("format") != FORMAT or metadata.keys() != {"format", "bundle", "facts", "sha256"}:
            raise SnapshotError(f"{path} is not a snapshot of this version ({FORMAT}). Save the session again.")
        digest = metadata.pop("sha256")
        if digest != cls(metadata["bundle"], {}, arrays)._digest(metadata):
            raise SnapshotError(f"{path} is damaged: its content does not have its SHA-256. Copy it again.")
        return cls(metadata["bundle"], json.loads(metadata["facts"]), arrays)

    def check(self, bundle: Bundle) -> None:
        """Raise SnapshotError unless `bundle` can continue it."""
        if self.bundle != graphs_digest(bundle):
            raise SnapshotError(
                "The snapshot is of another bundle: a session can go on only with the same graphs and engines. Load that "
                "bundle, or open a new session."
            )

    def _digest(self, metadata: Mapping[str, str]) -> str:
        found = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
        for name, array in sorted(self.arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


def _plain(value: Any) -> Any:
    """A NumPy number, such as a temperature, as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be saved.")


def graphs_digest(bundle: Bundle) -> str:
    """Names the files that a session's state depends on: all but voices and text."""
    files = bundle.manifest["files"]
    kept = {n: each["sha256"] for n, each in files.items() if not is_voices_file(n) and n != TOKENIZER_FILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
