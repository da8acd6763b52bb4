"""Files appear whole or not at all, and what is no file is left what it is."""

import os
import stat
from pathlib import Path

import pytest

from pplex.runtime.errors import OutputError
from pplex.runtime.files import check_distinct, check_writable, write_files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_are_written(tmp_path: Path) -> None:
    write_files({str(tmp_path / "a"): b"1", str(tmp_path / "b"): b"2"})
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "b").read_bytes() == b"2"
    assert names(tmp_path) == ["a", "b"]


def test_none_appears_when_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"x\.json cannot be written"):
        write_files({str(tmp_path / "a"): b"new", str(tmp_path / "nowhere" / "x.json"): b"2"})
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    check_writable(tmp_path / "link")
    write_files({str(tmp_path / "link"): b"1"})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"1"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_files({str(pipe): b"1"})
    assert os.read(reader, 10) == b"1" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


@pytest.mark.parametrize("name", ["", ".", "nowhere/x", "x" * 300])
def test_a_name_that_cannot_be_written_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        check_writable(name)
    assert names(tmp_path) == []


def test_one_file_under_two_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OutputError, match="named twice"):
        check_distinct(str(tmp_path / "a"), "-", str(tmp_path / "link"))
    check_distinct(str(tmp_path / "a"), "-", "-", str(tmp_path / "b"), "/dev/null", "/dev/null")
