"""A bundle's voices change as one step: killed at any moment, it is whole, with the old voices or the new ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import unprivileged

from pplex.runtime import voice_changes
from pplex.runtime.bundle import LOCK_FILE, MANIFEST_FILE, Bundle, is_bundle, manifest_bytes, open_bundle
from pplex.runtime.errors import BundleError, PromptError
from pplex.runtime.locks import take_lock
from pplex.runtime.voice_changes import Voices, change_voices, check_changeable, open_voices

CODES = np.random.default_rng(0).integers(0, 2048, (30, 8))
OLD = ["NATF0", "NATM1", "VARF2"]

# Changes one copy of the bundle after the other. Each process is killed one moment later: before a system call, or after it.
KILLED = """
import itertools, os, signal, sys
from pathlib import Path
import numpy as np
from pplex.runtime import voice_changes

source, target = map(Path, sys.argv[1:])

def change(voices):
    return voices.with_recording("Ann", np.ones((30, 8), np.int64), "ann.wav").without("NATF0")

def change_until(last, folder):
    moments = itertools.count()
    def pass_moment():
        if next(moments) == last:
            os.kill(os.getpid(), signal.SIGKILL)
    def watched(call):
        def run(*arguments, **rest):
            pass_moment()
            result = call(*arguments, **rest)
            pass_moment()
            return result
        return run
    for name in ("open", "replace", "unlink", "fsync", "close"):
        setattr(os, name, watched(getattr(os, name)))
    voice_changes.change_voices(folder, change)

for moment in itertools.count():
    folder = target / str(moment)
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    child = os.fork()
    if not child:
        change_until(moment, folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
"""


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle: links, as in the hub's cache."""
    return linked(tiny_bundle.folder, tmp_path / "bundle")


def linked(source: Path, copy: Path) -> Path:
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def with_ann(voices: Voices) -> Voices:
    return voices.with_recording("Ann", CODES, "ann.wav")


def test_a_recording_is_added_and_removed_and_the_manifest_stays_true(tiny_bundle: Bundle, folder: Path) -> None:
    before = set(os.listdir(folder))
    change_voices(folder, with_ann)
    added, voices = open_voices(folder)
    assert open_bundle(folder).manifest["voices"] == list(added.voices) == ["Ann", *OLD]
    np.testing.assert_array_equal(added.voices["Ann"], CODES)
    assert [voices.source(name) for name in ("Ann", "NATF0")] == ["ann.wav", "checkpoint"]
    changed = {name for name in added.manifest if added.manifest[name] != tiny_bundle.manifest[name]}
    assert changed == {"voices", "files", "digest"}

    change_voices(folder, lambda voices: voices.without("Ann"))
    bundle, voices = open_voices(folder)
    assert list(bundle.voices) == OLD and not voices.recordings
    for name, voice in tiny_bundle.voices.items():
        np.testing.assert_array_equal(bundle.voices[name].embeddings, voice.embeddings)
    assert len(os.listdir(folder)) == len(before) and is_bundle(folder)
    assert open_bundle(tiny_bundle.folder).manifest == tiny_bundle.manifest  # links are replaced, not followed


def test_the_last_voice_can_be_removed_and_another_added(folder: Path) -> None:
    for name in OLD:
        change_voices(folder, lambda voices, name=name: voices.without(name))
    assert open_bundle(folder).voices == {}
    change_voices(folder, with_ann)
    assert list(open_bundle(folder).voices) == ["Ann"]


def test_a_change_killed_at_any_moment_leaves_a_whole_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Before and after each system call; the next change then cleans up."""
    command = [sys.executable, "-c", KILLED, tiny_bundle.folder, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    outcomes = []
    for folder in sorted(tmp_path.iterdir(), key=lambda path: int(path.name)):
        outcomes.append(list(open_bundle(folder).voices))
        assert is_bundle(folder), os.listdir(folder)
        change_voices(folder, lambda voices: voices.without("VARF2"))
        assert list(open_bundle(folder).voices) == [name for name in outcomes[-1] if name != "VARF2"]
        left = {path.name for path in folder.iterdir()} - {*open_bundle(folder).manifest["files"], MANIFEST_FILE}
        assert not left, folder.name
    new = ["Ann", "NATM1", "VARF2"]
    assert len(outcomes) > 20 and outcomes == sorted(outcomes, key=lambda voices: voices == new)
    assert OLD in outcomes and outcomes.count(new) > 4


def test_an_error_in_the_change_changes_nothing(folder: Path) -> None:
    def fail(voices: Voices) -> Voices:
        raise PromptError("no such voice")

    before = sorted(os.listdir(folder)), (folder / MANIFEST_FILE).read_bytes()
    with pytest.raises(PromptError, match="no such voice"):
        change_voices(folder, fail)
    assert (sorted(os.listdir(folder)), (folder / MANIFEST_FILE).read_bytes()) == before


def test_a_full_disk_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = sorted(os.listdir(folder)), (folder / MANIFEST_FILE).read_bytes()
    with pytest.raises(OSError, match="No space left"):
        change_voices(folder, with_ann)
    assert (sorted(os.listdir(folder)), (folder / MANIFEST_FILE).read_bytes()) == before


def test_damaged_voices_are_refused_and_not_signed_again(folder: Path) -> None:
    path = folder / "voices.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    for change in (with_ann, lambda voices: voices.without("NATF0")):
        with pytest.raises(BundleError, match=r"voices\.safetensors does not have the SHA-256"):
            change_voices(folder, change)


def test_two_changes_at_once_are_both_made(folder: Path) -> None:
    code = """
import sys, numpy as np
from pathlib import Path
from pplex.runtime.voice_changes import change_voices
change_voices(Path(sys.argv[1]), lambda voices: voices.with_recording(sys.argv[2], np.ones((3, 8), np.int64), "a.wav"))
"""
    names = [f"Voice{i}" for i in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", code, folder, name]) for name in names]
    assert [process.wait(60) for process in running] == [0] * 4
    assert list(open_bundle(folder).voices) == [*OLD, *names]
    assert not (folder / LOCK_FILE).exists()


def test_a_bundle_that_another_process_changes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_changes, "LOCK_S", 0.2)
    lock = take_lock(folder / LOCK_FILE)
    assert lock is not None
    for attempt in (lambda: change_voices(folder, with_ann), lambda: check_changeable(folder)):
        with pytest.raises(BundleError, match=r"is being changed by another process\. Wait for it"):
            attempt()
    os.close(lock)
    change_voices(folder, with_ann)


def test_a_bundle_that_is_replaced_meanwhile_keeps_its_new_content(tiny_bundle: Bundle, folder: Path) -> None:
    def replaced(voices: Voices) -> Voices:
        folder.rename(folder.with_name("old"))
        linked(tiny_bundle.folder, folder)
        return with_ann(voices)

    with pytest.raises(BundleError, match="was replaced by another process"):
        change_voices(folder, replaced)
    assert list(open_bundle(folder).voices) == OLD and is_bundle(folder)


def test_a_reader_gets_the_old_voices_or_the_new_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The voices change after the reader has read the manifest, and the old file is deleted before it is read."""
    changes = iter([with_ann, lambda voices: voices.without("NATM1")])

    def late(manifest: object) -> set[str]:
        for change in changes:
            change_voices(folder, change)
            break
        return set()

    assert list(open_bundle(folder, unread=late).voices) == ["Ann", "NATF0", "VARF2"]


def test_a_folder_that_is_not_a_bundle_gets_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="is not a bundle"):
            change_voices(path, with_ann)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(bool(unprivileged.why_not()), reason=str(unprivileged.why_not()))
@pytest.mark.parametrize("command", [["add", "{bundle}", "Ann", "none.wav"], ["remove", "{bundle}", "NATF0"]])
def test_a_bundle_that_may_not_be_written_is_refused(folder: Path, command: list[str]) -> None:
    folder.chmod(0o555)
    try:
        arguments = [part.format(bundle=folder) for part in command]
        done = unprivileged.run(unprivileged.MAIN, "voices", *arguments)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{folder} cannot be changed: Permission denied.\nCopy the bundle" in done.stderr


def test_a_manifest_without_a_voices_file_is_a_bundle_without_voices(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    del manifest["files"]["voices.safetensors"]
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes({**manifest, "voices": []}))
    (folder / "voices.safetensors").unlink()
    assert open_bundle(folder).voices == {}
    change_voices(folder, with_ann)
    assert list(open_bundle(folder).voices) == ["Ann"]
