"""Changes a bundle's voices. At every moment the folder holds a whole bundle, with the old voices or the new ones.

    .lock                     one process at a time
    voices-HASH.safetensors   the new voices, under a name of their own
    manifest.json.new         renamed to manifest.json: from now on the bundle has the new voices
                              the file of the old voices is deleted

A process that has loaded the bundle does not read these files again. Called by `cli.voices`.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import (
    LOCK_FILE,
    MANIFEST_FILE,
    NEW_MANIFEST_FILE,
    Bundle,
    manifest_bytes,
    open_bundle,
    read_manifest,
)
from pplex.runtime.errors import BundleError, PromptError
from pplex.runtime.locks import take_lock
from pplex.runtime.voice_file import (
    CHECKPOINT,
    AnyVoice,
    is_voices_file,
    name_problem,
    read_voices_file,
    voices_bytes,
    voices_file,
)

LOCK_S = 20.0  # how long a change waits for another one
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Voices:
    """The voices of a bundle, and the file names of those that are recordings."""

    voices: Mapping[str, AnyVoice]
    recordings: Mapping[str, str]

    def source(self, name: str) -> str:
        """Where a voice comes from: the checkpoint, or the file name of a recording."""
        return self.recordings.get(name, CHECKPOINT)

    def with_recording(self, name: str, codes: Tokens, file: str) -> "Voices":
        """These voices and one more, with codes [F, 8]."""
        return Voices({**self.voices, name: codes}, {**self.recordings, name: file})

    def without(self, name: str) -> "Voices":
        return Voices(_without(self.voices, name), _without(self.recordings, name))


def _without(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in entries.items() if other != name}


def open_voices(folder: Path, *graphs: str) -> tuple[Bundle, Voices]:
    """Open a bundle for its voices, and for some of its `graphs`: the other files are not read.

    Raises BundleError, AccessError.
    """
    read = tuple(f"{graph}." for graph in graphs)

    def unread(manifest: Mapping[str, Any]) -> set[str]:
        return {name for name in manifest["files"] if not (is_voices_file(name) or name.startswith(read))}

    bundle = open_bundle(folder, unread=unread)
    name = voices_file(bundle.manifest["files"])
    return bundle, Voices(bundle.voices, read_voices_file(folder / name, ())[1] if name else {})


def check_voice(folder: Path, voices: Voices, name: str) -> None:
    """Raise PromptError unless the bundle has a voice of this name."""
    if name not in voices.voices:
        has = f"It has {', '.join(voices.voices)}." if voices.voices else "It has no voices."
        raise PromptError(
            f"{folder} has no voice {name!r}. {has}\n"
            f"To add one from a recording: pplex-export voices add {folder} NAME FILE"
        )


def check_new(folder: Path, voices: Voices, name: str) -> None:
    """Raise PromptError if a voice cannot have this name in the bundle."""
    if problem := name_problem(name):
        raise PromptError(
            f"{name!r} cannot be a voice's name: {problem}.\nThe order is: pplex-export voices add BUNDLE NAME FILE"
        )
    if name in voices.voices:
        raise PromptError(
            f"{folder} already has a voice {name} (from: {voices.source(name)}).\n"
            f"Choose another name, or remove it first: pplex-export voices remove {folder} {name}"
        )


def check_changeable(folder: Path) -> None:
    """Raise BundleError if this user cannot change the bundle, or another process is changing it. Call it before work."""
    with _locked(folder):
        pass


def change_voices(folder: Path, change: Callable[[Voices], Voices]) -> None:
    """Replace a bundle's voices by what `change` makes of them.

    Errors of `change` leave the bundle as it is. Raises BundleError if the bundle is damaged, if this user cannot change it,
    or if another process is changing it.
    """
    with _locked(folder) as inside:
        bundle, voices = open_voices(folder)
        changed = change(voices)
        names = sorted(changed.voices)
        data = voices_bytes(changed.voices, changed.recordings)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"voices-{sha256[:16]}.safetensors"
        files = {file: facts for file, facts in bundle.manifest["files"].items() if not is_voices_file(file)}
        files[name] = {"nbytes": len(data), "sha256": sha256}
        manifest = {**bundle.manifest, "voices": names, "files": dict(sorted(files.items()))}
        try:
            _write(inside, name, data)
            _write(inside, NEW_MANIFEST_FILE, manifest_bytes(manifest))
            os.replace(NEW_MANIFEST_FILE, MANIFEST_FILE, src_dir_fd=inside, dst_dir_fd=inside)
            os.fsync(inside)
        finally:
            _tidy(inside)
        if not _is(folder, inside):
            raise BundleError(f"{folder} was replaced by another process in the meantime. Run the command again.")


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The open folder of a bundle that no other process changes. All writing goes through it: a build may rename it."""
    read_manifest(folder)  # refuses a folder that is not a bundle, before a file is made in it
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock = _wait_for_lock(folder)
        try:
            yield inside
        finally:
            with suppress(OSError):
                os.unlink(LOCK_FILE, dir_fd=inside)
            os.close(lock)
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        raise BundleError(
            f"{folder} cannot be changed: {error.strerror}.\n"
            "Copy the bundle to a folder that this user may write to, and change the copy."
        ) from error
    finally:
        os.close(inside)


def _wait_for_lock(folder: Path) -> int:
    end = time.monotonic() + LOCK_S
    while (lock := take_lock(folder / LOCK_FILE)) is None:
        if time.monotonic() > end:
            raise BundleError(f"{folder} is being changed by another process. Wait for it, and run the command again.")
        time.sleep(0.05)
    return lock


def _is(folder: Path, inside: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(inside))
    except FileNotFoundError:
        return False


def _write(inside: int, name: str, data: bytes) -> None:
    """Write a file, and wait until it is on disk: a manifest must not name a file that a power failure destroyed."""
    with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, dir_fd=inside), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _tidy(inside: int) -> None:
    """Delete the files that the manifest does not name: those of old voices, and those of an interrupted change."""
    with suppress(OSError):
        with os.fdopen(os.open(MANIFEST_FILE, os.O_RDONLY, dir_fd=inside)) as file:
            named = json.load(file)["files"]
        for name in os.listdir(inside):
            if name == NEW_MANIFEST_FILE or (is_voices_file(name) and name not in named):
                os.unlink(name, dir_fd=inside)
