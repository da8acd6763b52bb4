"""A staged folder appears complete, and never replaces a foreign one."""

import os
from pathlib import Path

import pytest

from pplex.export.staging import Steps, partial_folder, whole_folder
from pplex.runtime.bundle import LOCK_FILE, STEPS_FILE
from pplex.runtime.errors import OutputError


def never(out: Path) -> bool:
    return False


def always(out: Path) -> bool:
    return True


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep" / "out", never) as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["a"]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", always):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_a_folder_created_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="in the meantime"), whole_folder(tmp_path / "out", never):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["mine"]


def test_an_abandoned_folder_is_removed_and_one_in_use_is_not(tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.building-1"
    abandoned.mkdir()
    (abandoned / LOCK_FILE).touch()
    with whole_folder(tmp_path / "out", always) as first:
        with whole_folder(tmp_path / "out", always) as second:
            assert first.exists() and first != second
        assert names(tmp_path) == [first.name, "out"]
    assert names(tmp_path) == ["out"]


def test_the_old_folder_is_restored_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    old = tmp_path / ".out.replaced-1"
    old.mkdir()
    (old / "years of work").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", always, resumable=True):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["years of work"]


def test_a_name_with_brackets_is_not_a_pattern(tmp_path: Path) -> None:
    (tmp_path / ".b[1].building-1").mkdir()
    with whole_folder(tmp_path / "b[1]", never):
        pass
    assert names(tmp_path) == ["b[1]"]


def write(path: Path, content: str = "1") -> None:
    path.write_text(content)


def test_finished_steps_are_not_repeated_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", never, resumable=True) as folder:
        Steps(folder, "a model").once("first", lambda: write(folder / "a"))
        (folder / "half").write_text("of the second step")
        raise ZeroDivisionError
    assert folder == partial_folder(tmp_path / "out") and folder.exists()
    with whole_folder(tmp_path / "out", never, resumable=True) as folder:
        steps = Steps(folder, "a model")
        assert not (folder / "half").exists()
        steps.once("first", lambda: write(folder / "a", "again"))
        steps.once("second", lambda: write(folder / "b"))
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a", "b"]
    assert (tmp_path / "out" / "a").read_text() == "1"


@pytest.mark.parametrize(
    "damage", ["another identity", "a shorter file", "a missing file", "no record", "another record"]
)
def test_changed_steps_are_repeated(tmp_path: Path, damage: str) -> None:
    Steps(tmp_path, "a model").once("first", lambda: write(tmp_path / "a", "whole"))
    if damage == "a shorter file":
        write(tmp_path / "a", "who")
    elif damage == "a missing file":
        (tmp_path / "a").unlink()
    elif damage in ("no record", "another record"):
        write(tmp_path / STEPS_FILE, {"no record": "{", "another record": "[]"}[damage])
    steps = Steps(tmp_path, "another" if damage == "another identity" else "a model")
    assert not (tmp_path / "a").exists() and not steps.done
    steps.once("first", lambda: write(tmp_path / "a", "anew"))
    assert (tmp_path / "a").read_text() == "anew"


def test_a_removed_step_leaves_nothing_and_is_repeated(tmp_path: Path) -> None:
    steps = Steps(tmp_path, "a model")
    steps.once("first", lambda: write(tmp_path / "a"))
    steps.remove("first")
    steps.remove("first")
    assert not (tmp_path / "a").exists() and "first" not in Steps(tmp_path, "a model").done


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to("old")
    with whole_folder(tmp_path / "link", always) as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path) == ["link", "old"] and names(tmp_path / "old") == ["a"]


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), whole_folder(tmp_path / "file" / "out", never):
        pass
    with pytest.raises(OutputError, match="too long"), whole_folder(tmp_path / ("x" * 300), never):
        pass
    assert os.listdir(tmp_path) == ["file"]
