"""The requirements in our metadata, and the lock files that are installed with the code."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from pplex.doctor.requirements import LOCKS, Requirement, locked_versions, normalized, numbers, parse, requirements

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_requirement_of_our_metadata_is_parsed() -> None:
    found = {(one.extra, one.name, one.bound) for one in requirements()}
    assert {("", "numpy", ">=2.3"), ("export", "torch", "==2.13.0"), ("serve", "uvloop", ">=0.21")} <= found
    assert ("cuda", "onnxruntime-gpu", ">=1.31") in found
    assert len(found) == len(metadata.requires("pplex-export") or [])


def test_an_unknown_kind_of_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read as a requirement"):
        parse("numpy~=2.3")


@pytest.mark.parametrize(
    "version, least, exact, fits",
    [
        ("2.3.0", "2.3", False, True), ("2.13", "2.3", False, True), ("2.2.9", "2.3", False, False),
        ("2.13.0+cpu", "2.13.0", True, True), ("2.13.1", "2.13.0", True, False), ("3.0rc1", "2.3", False, True),
    ],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version: str, least: str, exact: bool, fits: bool) -> None:
    one = Requirement("package", "", least, exact)
    one.__dict__["version"] = version
    assert one.fits is fits


def test_trailing_zeros_do_not_count() -> None:
    assert numbers("1.0") == numbers("1") == numbers("1.0.0")


def test_the_lock_files_are_packaged_and_read() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert setuptools["package-dir"]["pplex.requirements"] == LOCKS.name == "requirements"
    assert setuptools["package-data"]["pplex.requirements"] == ["*.txt"]
    pins = locked_versions()
    assert {"numpy", "aiohttp", "huggingface-hub", "nvidia-cuda-runtime"} <= set(pins)


def test_a_locked_package_is_found_under_any_spelling() -> None:
    locked = set(locked_versions())
    extras = ("", "cpu", "serve", "scale", "fleet", "otel", "transcribe", "validate")
    assert {normalized(one.name) for one in requirements() if one.extra in extras} <= locked


@pytest.mark.parametrize("variant", ["cpu", "cuda", "ray"])
def test_the_packages_of_an_image_are_locked_without_torch(variant: str) -> None:
    """The variants that docs/containers.md names."""
    assert f"VARIANT={variant}" in (ROOT / "docs/containers.md").read_text() or variant == "cpu"
    extras = {"cpu": ("cpu",), "cuda": ("cuda",), "ray": ("cuda", "scale")}[variant]
    lines = (LOCKS / f"image-{variant}.txt").read_text().splitlines()
    locked = {normalized(line.partition("==")[0]) for line in lines if "==" in line}
    wanted = {normalized(one.name) for one in requirements() if one.extra in ("", "serve", "otel", *extras)}
    assert wanted <= locked
    assert "torch" not in locked


def test_every_package_is_listed_and_marked_as_typed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {
        name: ROOT / folder for name, folder in setuptools["package-dir"].items() if name != "pplex.requirements"
    }
    packages = {path.parent for path in ROOT.glob("*/__init__.py")}
    assert set(folders.values()) == packages
    nested = {
        path.parent for folder in packages for path in folder.glob("*/__init__.py")
    }  # types: by the package above
    listed = {f"pplex.{folder.relative_to(ROOT).as_posix().replace('/', '.')}" for folder in packages | nested}
    assert listed | {"pplex.requirements"} == set(setuptools["packages"])
    assert all((folder / "py.typed").is_file() for folder in folders.values())
    assert all("py.typed" in setuptools["package-data"][name] for name in folders)
