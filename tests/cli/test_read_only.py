"""A bundle on a file system that cannot be written: `run`, `serve` and `inspect --verify` work, and leave nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import TINY
from serving import MAIN, serving

from pplex.export.build import BuildOptions, build
from pplex.export.source import CheckpointSource
from pplex.runtime.bundle import CACHES_FOLDER
from pplex.runtime.kernel_choice import AUTO, OFF, VARIABLE
from pplex.runtime.precision import parse_precision

# A process with a view of the file system of its own, in which the bundle is mounted read-only. Constants of mount(2).
READ_ONLY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)
bundle = {bundle!r}.encode()
call("unshare", 0x20000)
call("mount", b"none", b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None)
call("mount", bundle, bundle, None, ctypes.c_ulong(0x1000), None)
call("mount", None, bundle, None, ctypes.c_ulong(0x1000 | 0x20 | 0x1), None)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a graph whose optimised form would be cached in the bundle."""
    options = BuildOptions(precision=parse_precision("temporal=int8"), calibration=None)
    out = tmp_path_factory.mktemp("read-only") / "bundle"
    build(CheckpointSource(TINY / "checkpoint", None, None), out, options)
    tried = subprocess.run([sys.executable, "-c", READ_ONLY.format(bundle=str(out))], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no read-only file system can be mounted here: {tried.stderr.splitlines()[-1]}")
    return out


def run(bundle: Path, *arguments: str | Path, prelude: str, kernels: str = AUTO) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", prelude + MAIN, *map(str, arguments)]
    environment = os.environ | {VARIABLE: kernels}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_it_runs_and_can_be_verified(bundle: Path, tmp_path: Path) -> None:
    """Our kernels need a cache, so it runs on ONNX Runtime's, as where ours are turned off."""
    read_only = READ_ONLY.format(bundle=str(bundle))
    agent = [tmp_path / "read-only.wav", tmp_path / "written.wav"]
    copy = shutil.copytree(bundle, tmp_path / "copy")
    for folder, wav, prelude, kernels in ((bundle, agent[0], read_only, AUTO), (copy, agent[1], "", OFF)):
        user = [
            "--voice",
            "NATF0",
            "--input-wav",
            TINY / "checkpoint/voices/synthetic.wav",
            "--output-text",
            tmp_path / "agent.json",
        ]
        options = ("--output-wav", wav, "--seed", "1", "--device", "cpu")
        done = run(folder, "run", folder, *user, *options, prelude=prelude, kernels=kernels)
        assert done.returncode == 0, done.stderr
    assert agent[0].read_bytes() == agent[1].read_bytes()
    assert (copy / CACHES_FOLDER).is_dir() and not (bundle / CACHES_FOLDER).exists()
    done = run(bundle, "inspect", bundle, "--verify", prelude=read_only)
    assert done.returncode == 0 and "files, all as they were built" in done.stdout, done.stderr


def test_it_can_be_served(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, "--slots", "1", prelude=READ_ONLY.format(bundle=str(bundle))) as server:
        assert server.get("/ready")[0] == 200
    assert not (bundle / CACHES_FOLDER).exists()
