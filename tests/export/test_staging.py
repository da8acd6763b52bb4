"""A folder takes its place whole, and takes nobody else's."""

import os
from pathlib import Path

import pytest

from pplex.export.staging import LOCK_FILE, whole_folder
from pplex.runtime.errors import OutputError


def never(out: Path) -> bool:
    return False


def always(out: Path) -> bool:
    return True


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_with_what_was_put_in_it(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep" / "out", never) as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", always):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_a_folder_made_in_the_meantime_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="in the meantime"), whole_folder(tmp_path / "out", never):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["mine"]


def test_an_abandoned_folder_is_removed_and_one_in_use_is_not(tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.building-1"
    abandoned.mkdir()
    (abandoned / LOCK_FILE).touch()
    (tmp_path / ".out.replaced-1").mkdir()
    with whole_folder(tmp_path / "out", always) as first:
        with whole_folder(tmp_path / "out", always) as second:
            assert first.exists() and first != second
        assert names(tmp_path) == [first.name, "out"]
    assert names(tmp_path) == ["out"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to("old")
    with whole_folder(tmp_path / "link", always) as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path) == ["link", "old"] and names(tmp_path / "old") == ["a"]


def test_a_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), whole_folder(tmp_path / "file" / "out", never):
        pass
    with pytest.raises(OutputError, match="too long"), whole_folder(tmp_path / ("x" * 300), never):
        pass
    assert os.listdir(tmp_path) == ["file"]
