"""Commands whose user may not read a file: the error names the file, without a traceback or the word "damaged"."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import unprivileged
from folders import TINY
from unprivileged import MAIN

from pplex.runtime.bundle import Bundle

pytestmark = pytest.mark.skipif(bool(unprivileged.why_not()), reason=str(unprivileged.why_not()))

SERVE = ["serve", "bundle", "--port", "0", "--device", "cpu"]
RUN = ["run", "bundle", "--input-wav", "user.wav", "--output-wav", "agent.wav", "--output-text", "agent.json"]


@pytest.fixture
def room(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder with copies of the files that commands read: a bundle, a checkpoint, a recording."""
    shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")
    shutil.copytree(TINY / "checkpoint", tmp_path / "checkpoint")
    shutil.copy(TINY / "checkpoint/voices/synthetic.wav", tmp_path / "user.wav")
    return tmp_path


@contextmanager
def mode(bits: int, *paths: Path) -> Iterator[None]:
    before = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(bits)
    try:
        yield
    finally:
        for path, old in zip(paths, before, strict=True):
            path.chmod(old)


def assert_refused(done: subprocess.CompletedProcess[str], *files: str) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for file in files:
        assert f"{file} cannot be used: Permission denied." in done.stderr, done.stderr
    assert "Give this user the right to it" in done.stderr
    assert "damaged" not in done.stderr and "is not a bundle" not in done.stderr and "Copy" not in done.stderr


@pytest.mark.parametrize("arguments", [SERVE, RUN, ["inspect", "bundle"], ["plan", "bundle", "--gpu", "l4"]])
def test_an_unreadable_bundle_is_named(arguments: list[str], room: Path) -> None:
    """A folder that can be listed but not entered, an unreadable manifest, and several unreadable files at once."""
    bundle = room / "bundle"
    with mode(0o600, bundle):
        assert_refused(unprivileged.run(MAIN, *arguments, cwd=room), "bundle/manifest.json")
    with mode(0, bundle / "manifest.json"):
        assert_refused(unprivileged.run(MAIN, *arguments, cwd=room), "bundle/manifest.json")
    with mode(0, bundle / "temporal.data", bundle / "voices.safetensors"):
        done = unprivileged.run(MAIN, *arguments, cwd=room)
        assert_refused(done, "bundle/temporal.data", "bundle/voices.safetensors")


def test_a_cache_of_another_user_is_rebuilt(room: Path) -> None:
    (room / "bundle/caches").mkdir(exist_ok=True)
    with mode(0, room / "bundle/caches"):
        done = unprivileged.run(MAIN, *RUN, "--voice", "none", cwd=room)
    assert done.returncode == 0 and (room / "agent.wav").is_file(), done.stderr


def test_an_unreadable_certificate_is_named(room: Path) -> None:
    (room / "tls").mkdir()
    for name in ("cert.pem", "key.pem"):
        (room / "tls" / name).write_text("")
    with mode(0, room / "tls/key.pem"):
        assert_refused(unprivileged.run(MAIN, *SERVE, "--ssl", "tls", cwd=room), "tls/key.pem")
    with mode(0o600, room / "tls"):
        assert_refused(unprivileged.run(MAIN, *SERVE, "--ssl", "tls", cwd=room), "tls/cert.pem")


def test_an_unreadable_page_folder_is_named(room: Path) -> None:
    (room / "page").mkdir()
    (room / "page/index.html").write_text("")
    with mode(0, room / "page/index.html"):
        assert_refused(unprivileged.run(MAIN, *SERVE, "--static", "page", cwd=room), "page/index.html")


@pytest.mark.slow
def test_an_unreadable_report_is_named(room: Path) -> None:
    (room / "report").mkdir()
    (room / "report/report.json").write_text("{}")
    with mode(0, room / "report/report.json"):
        done = unprivileged.run(MAIN, "validate", "--compare", "report", "report", cwd=room)
        assert_refused(done, "report/report.json")


@pytest.mark.slow
def test_an_unreadable_checkpoint_is_named(room: Path) -> None:
    """Unreadable weights, which the library reports as missing, and recordings in subfolders."""
    checkpoint, build = room / "checkpoint", ["build", "checkpoint", "--out", "made", "--precision", "int4"]
    with mode(0, checkpoint / "config.json"):
        done = unprivileged.run(MAIN, "plan", "checkpoint", "--gpu", "l4", cwd=room)
        assert_refused(done, "checkpoint/config.json")
    with mode(0, checkpoint / "model.safetensors", checkpoint / "voices.tgz"):
        done = unprivileged.run(MAIN, *build, cwd=room)
        assert_refused(done, "checkpoint/model.safetensors", "checkpoint/voices.tgz")
    (room / "speech/deep").mkdir(parents=True)
    shutil.copy(room / "user.wav", room / "speech/deep")
    with mode(0, room / "speech/deep"):
        assert_refused(unprivileged.run(MAIN, *build, "--calibration", "speech", cwd=room), f"{room}/speech/deep")
    assert not list(room.glob("*made*"))
