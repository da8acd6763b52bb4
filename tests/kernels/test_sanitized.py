"""The kernels compiled with sanitizers: no access outside of buffers, nothing undefined, no race. On Arm, in an emulator."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "kernels" / "src"
HARNESS = Path(__file__).with_name("harness.cpp")
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-math-errno", "-ffp-contract=off", "-pthread"]
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def harness(compiler: str, flags: list[str], out: Path) -> None:
    """Compile it. Skips the test if the compiler lacks the flags' libraries."""
    parts = [
        SOURCES / f"{name}.cpp"
        for name in ("attention", "avx2", "avx512", "avxvnni", "levels", "neon", "portable", "product")
    ]
    command = [compiler, *FLAGS, *flags, f"-I{SOURCES}", *map(str, [HARNESS, *parts]), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr:
        pytest.skip(f"{compiler} has no sanitizers: install its libasan, libubsan and libtsan")
    assert done.returncode == 0, done.stderr


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str) -> None:
    compiler = needed("g++", "g++")
    harness(compiler, [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"], tmp_path / "harness")
    # Addresses at random places can collide with what ThreadSanitizer reserves.
    fixed = [needed("setarch", "util-linux"), "-R"] if sanitizers == "thread" else []
    done = subprocess.run([*fixed, tmp_path / "harness"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(" attentions\n"), done.stdout + done.stderr


@pytest.mark.slow
def test_arm_gives_the_same_bits(tmp_path: Path) -> None:
    emulator = needed(ARM_EMULATOR, "qemu-user")
    harness(needed(ARM_COMPILER, "g++-aarch64-linux-gnu"), ["-static"], tmp_path / "harness")
    environment = os.environ | {"QEMU_CPU": "max"}
    done = subprocess.run([emulator, tmp_path / "harness"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout == "360 products, 120 attentions\n", done.stdout + done.stderr
