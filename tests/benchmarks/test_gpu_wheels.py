"""Wheels in parts from several loads: joined, or reported as incomplete or damaged."""

import hashlib
from pathlib import Path

import pytest
from gpu_wheels import DamagedError, collect


def cut(wheel: Path, nbytes: int, loads: list[Path]) -> None:
    """Parts of a wheel, divided among the loads, and the list of checksums in each."""
    data = wheel.read_bytes()
    pieces = [data[i : i + nbytes] for i in range(0, len(data), nbytes)]
    for i, piece in enumerate(pieces):
        load = loads[i * len(loads) // len(pieces)]
        (load / f"{wheel.name}.part{i:03}").write_bytes(piece)
    for load in loads:
        with (load / "SHA256SUMS").open("a") as sums:
            sums.write(f"{hashlib.sha256(data).hexdigest()}  {wheel.name}\n")


@pytest.fixture
def loads(tmp_path: Path) -> list[Path]:
    """Two loads: one wheel is complete in the second load, the other is split in halves."""
    import zipfile

    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    for name, size, into in (("small", 90, folders[1:]), ("big", 1005, folders)):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", "x" * size)
        cut(tmp_path / f"{name}.whl", 300, into)
    return folders


def test_wheels_are_joined_from_two_loads(tmp_path: Path, loads: list[Path]) -> None:
    target = tmp_path / "target"
    assert collect(loads[0], target) == ["big.whl: parts after 001 are missing, or the wheel is damaged"]
    assert collect(loads[1], target) == []
    assert (target / "site/big/__init__.py").read_text() == "x" * 1005
    assert (target / "site/small/__init__.py").exists()
    assert [path.name for path in (target / "parts").iterdir()] == ["SHA256SUMS"], "the parts have gone"
    assert collect(loads[0], tmp_path / "target") == [], "unpacked wheels are not requested again"


def test_a_gap_in_the_parts_is_reported(tmp_path: Path, loads: list[Path]) -> None:
    assert collect(loads[1], tmp_path / "target") == ["big.whl: part 000, 001 is missing"]


def test_a_damaged_part_is_reported(tmp_path: Path, loads: list[Path]) -> None:
    part = loads[0] / "big.whl.part001"
    part.write_bytes(bytes(len(part.read_bytes())))
    collect(loads[0], tmp_path / "target")
    with pytest.raises(DamagedError, match=r"the checksum of its 4 parts differs from SHA256SUMS: carry all"):
        collect(loads[1], tmp_path / "target")
    assert not (tmp_path / "target/site/big").exists()
