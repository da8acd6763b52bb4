"""The wheel: with a C++ compiler it has the kernels' library, without one it is complete but for that."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "*.so", "*.egg-info", "__pycache__", "build", "demo", "tests", "benchmarks", "gpu-results"
)


def wheel_names(tmp_path: Path, path: str) -> set[str]:
    """Names of the files in the wheel that pip builds with the programs in `path`."""
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    environment = os.environ | {"PATH": path, "PIP_NO_INDEX": "1"}
    subprocess.run([*command, "--wheel-dir", tmp_path], cwd=source, check=True, env=environment, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.mark.slow
def test_the_package_installs_without_a_compiler(tmp_path: Path) -> None:
    names = wheel_names(tmp_path, str(tmp_path))
    assert "pplex/kernels/__init__.py" in names and not [name for name in names if name.endswith(".so")]


@pytest.mark.slow
def test_the_package_has_the_library_and_its_sources(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: apt-get install g++")
    names = wheel_names(tmp_path, os.environ["PATH"])
    assert [name for name in names if name.endswith(".so")] == ["pplex/kernels/libkernels.abi3.so"]
    sources = {f"pplex/kernels/src/{path.name}" for path in (ROOT / "kernels" / "src").iterdir()}
    assert sources <= names
