"""Steered conversations equal the recorded reference: forced text, a hold, and a memory that is rebuilt during the call."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from folders import STEER, TINY, steer_folders
from safetensors.numpy import load_file, save_file

from pplex.runtime.bundle import Bundle
from pplex.runtime.config import SILENCE_CODES
from pplex.validate.golden import Check
from pplex.validate.steered import Recording, check_steered

each_folder = pytest.mark.parametrize("folder", steer_folders(), ids=lambda folder: folder.name)
each_kind = pytest.mark.parametrize("for_engines", [False, True], ids=["for ONNX Runtime", "for engines"])


def failed(checks: Iterable[Check]) -> list[str]:
    checks = list(checks)
    assert len(checks) == 3
    return [check.name for check in checks if not check.passed]


def golden_of(folder: Path) -> Path:
    return (folder / (folder / "checkpoint.txt").read_text().strip()).resolve()


@each_folder
@each_kind
def test_steered_conversations_equal_the_reference(
    bundle_of: Callable[..., Bundle], folder: Path, for_engines: bool
) -> None:
    assert not failed(check_steered(bundle_of(golden_of(folder), for_engines=for_engines), folder))


@each_folder
def test_the_recordings_hold_what_they_claim(folder: Path) -> None:
    """Words and a hold are forced, free frames follow, and one recording continues the other's frames."""
    say, rebuild = (Recording.read(folder, name) for name in ("say_hold", "rebuild"))
    text, held = say.forced[:, 0], (say.forced[:, 1:] == SILENCE_CODES).all(axis=1)
    assert (text > 3).sum() > 5 and held.sum() > 8 and (text[held] == 3).all()
    assert (text[say.free_from :] == -1).all() and len(text) > say.free_from
    same = rebuild.free_from
    assert (rebuild.forced[: same - 1] == say.tokens[1:same, :9]).all()
    assert (rebuild.user[:same] == say.user[:same]).all() and (rebuild.forced[same:] == -1).all()


@pytest.mark.parametrize("name, frame", [("say_hold", 40), ("say_hold", 118), ("rebuild", 71)])
def test_one_changed_token_fails(tiny_bundle: Bundle, tmp_path: Path, name: str, frame: int) -> None:
    folder = tmp_path / "golden" / "steer"
    shutil.copytree(STEER, folder)
    (tmp_path / "golden" / "tiny").symlink_to(TINY)
    values = load_file(folder / f"{name}.safetensors")
    values["tokens"][frame, 3] = (values["tokens"][frame, 3] + 1) % 2048
    save_file(values, folder / f"{name}.safetensors")
    assert f"{name}: tokens" in failed(check_steered(tiny_bundle, folder))


def test_a_rebuild_that_forgets_a_frame_fails(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from pplex.runtime.rebuild import Memory

    start = Memory._start
    monkeypatch.setattr(Memory, "_start", lambda *given: start(*given) + 1)
    assert failed(check_steered(tiny_bundle, STEER)) == ["rebuild during the call: tokens"]
