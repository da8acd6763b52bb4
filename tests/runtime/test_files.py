"""Files are written completely or not at all, devices stay devices, and unreadable files are not called missing."""

import os
import stat
from pathlib import Path

import pytest
import unprivileged

from pplex.runtime.errors import OutputError
from pplex.runtime.files import (
    check_distinct,
    check_writable,
    files_below,
    folders_below,
    is_file,
    is_folder,
    is_there,
    make_folder,
    remove_parts,
    write_files,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_files_are_written(tmp_path: Path) -> None:
    write_files({str(tmp_path / "a"): b"1", str(tmp_path / "b"): b"2"})
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "b").read_bytes() == b"2"
    assert names(tmp_path) == ["a", "b"]


def test_no_file_appears_when_one_cannot_be_written(tmp_path: Path) -> None:
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
def test_an_unwritable_name_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        check_writable(name)
    assert names(tmp_path) == []


def test_one_file_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OutputError, match="named twice"):
        check_distinct(str(tmp_path / "a"), "-", str(tmp_path / "link"))
    check_distinct(str(tmp_path / "a"), "-", "-", str(tmp_path / "b"), "/dev/null", "/dev/null")


def test_a_folder_is_made_with_those_it_is_in(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "x" * 300):
        with pytest.raises(OutputError):
            make_folder(tmp_path / folder)


def test_only_parts_of_killed_writes_are_removed(tmp_path: Path) -> None:
    for name in (".0123456789abcdef.part", ".mine.part", "x.part", "output.wav"):
        (tmp_path / name).write_text("")
    remove_parts(tmp_path)
    assert names(tmp_path) == [".mine.part", "output.wav", "x.part"]


def test_path_checks_answer_for_every_kind_of_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    assert is_file(tmp_path / "file") and not is_folder(tmp_path / "file") and is_folder(tmp_path)
    for nothing in ("none", "none/x", "file/x", "loop", "x" * 300, "zero\0"):
        assert (
            not is_file(tmp_path / nothing) and not is_folder(tmp_path / nothing) and not is_there(tmp_path / nothing)
        )
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("")
    assert files_below(tmp_path) == [tmp_path / "a/b/c", tmp_path / "file", tmp_path / "loop"]
    assert files_below(tmp_path / "none") == files_below(tmp_path / "file") == []


def test_folders_behind_links_are_found_once(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    (data / "a/b").mkdir(parents=True)
    (other / "c").mkdir(parents=True)
    (data / "link").symlink_to(other)
    (data / "again").symlink_to(data / "a")
    (other / "c/back").symlink_to(data)
    (other / "c/loop").symlink_to(other)
    found = [str(path.relative_to(data)) for path in folders_below(data)]
    assert sorted(found) == ["a", "a/b", "link", "link/c"]
    assert folders_below(tmp_path / "none") == []


ASKED = """
import sys
from pathlib import Path
from pplex.runtime import files
from pplex.runtime.errors import AccessError, OutputError
shut, unreadable = Path(sys.argv[1]), Path(sys.argv[2])
for ask in (
    lambda: files.is_file(shut / "x"),
    lambda: files.is_folder(shut / "x"),
    lambda: files.is_there(shut / "x"),
    lambda: files.files_below(shut.parent),
    lambda: files.folders_below(shut.parent),
    lambda: files.read_text(unreadable),
    lambda: files.check_readable(unreadable, Path("none"), unreadable),
    lambda: files.check_writable(shut / "x"),
    lambda: files.write_files({str(shut / "x"): b""}),
):
    try:
        ask()
    except (AccessError, OutputError) as error:
        assert "Permission denied" in str(error)
    else:
        raise AssertionError("no error")
"""


@pytest.mark.skipif(bool(unprivileged.why_not()), reason=str(unprivileged.why_not()))
def test_unreadable_paths_raise_one_kind_of_error(tmp_path: Path) -> None:
    shut, unreadable = tmp_path / "a/shut", tmp_path / "unreadable"
    shut.mkdir(parents=True)
    unreadable.write_text("x")
    shut.chmod(0)
    unreadable.chmod(0)
    done = unprivileged.run(ASKED, shut, unreadable)
    shut.chmod(0o700)
    assert done.returncode == 0, done.stderr
