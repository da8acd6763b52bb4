"""Builds the images of deploy/containers with buildah, and runs them in namespaces of their own, without a container engine.

The base image is a stand-in for python:3.13-slim-bookworm: a few packages of Debian, unpacked by mmdebstrap. Pip inside gets
the settings of pip outside.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "containers" / "Dockerfile"
PACKAGES = "base-files,bash,coreutils,dash,grep,libc-bin,libstdc++6,python3,python3-venv,sed,tar"
UNPACK = ("mmdebstrap", "--mode=root", "--variant=extract", f"--include={PACKAGES}", "bookworm")
PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "nsenter": "util-linux"}
# Process 1 of new namespaces, on the image's files. Only /tmp can be written. `chroot` and `env` become the image's command.
ENTER = """
set -e
"$PYTHON" -c "$LOOPBACK_UP"
mount --bind "$ROOT" "$ROOT"
mount --bind "$BUNDLE" "$ROOT/bundle"
mount -o remount,bind,ro "$ROOT/bundle"
mount --bind /dev "$ROOT/dev"
mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
exec setpriv --no-new-privs chroot --userspec="$OWNER" --groups= "$ROOT" /usr/bin/env -i "$@"
"""
LOOPBACK_UP = """
import fcntl, socket, struct
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"""


def skip_without_tools() -> None:
    """Skip the test if this machine cannot build images."""
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        pytest.skip(f"images are built with buildah and mmdebstrap: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("images are built and run as root")


def output(*command: str | Path) -> str:
    """The standard output of a command. Fails with its standard error."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


class Builder:
    """buildah with its own storage in `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._settings = _pip_settings()

    def buildah(self, *arguments: str | Path) -> str:
        storage = ("--root", self._folder / "storage", "--runroot", self._folder / "run")
        return output("buildah", *storage, *arguments)

    @cached_property
    def base(self) -> str:
        """The stand-in for the base image, with a Python. Skips if Debian's archive cannot be reached."""
        context = self._folder / "base"
        context.mkdir()
        unpacked = subprocess.run([*UNPACK, context / "files"], capture_output=True, text=True)
        if unpacked.returncode:
            pytest.skip(f"Debian's packages for the base image could not be had: {unpacked.stderr.splitlines()[-1:]}")
        settings = "".join(f"ENV {name}={json.dumps(value)}\n" for name, value in self._settings.items())
        (context / "Dockerfile").write_text(f"FROM scratch\nCOPY files /\n{settings}")
        self.buildah("bud", "--isolation", "chroot", "--tag", "localhost/base", context)
        return "localhost/base"

    def build(self, tag: str, *options: str) -> "Image":
        """Build a target of the Dockerfile: every RUN and COPY is executed."""
        files = (value for value in self._settings.values() if Path(value).is_absolute())  # such as certificates
        shared = [f"--volume={path}:{path}:ro" for path in files]
        common = ("--isolation", "chroot", "--format", "docker", "--build-arg", f"BASE={self.base}", "--tag", tag)
        self.buildah("bud", *common, *shared, "--file", DOCKERFILE, *options, ROOT)
        config = json.loads(self.buildah("inspect", "--type", "image", tag))["Docker"]["config"]
        container = self.buildah("from", "--pull-never", tag)
        return Image(config, Path(self.buildah("mount", container)))

    def clean(self) -> None:
        self.buildah("umount", "--all")
        self.buildah("rm", "--all")


@dataclass
class Image:
    """An image's configuration, and its files."""

    config: dict[str, Any]
    root: Path

    @contextmanager
    def run(self, bundle: Path, log: Path) -> "Iterator[Container]":
        """Run the image's command like a container: as process 1, with a read-only root, a new network and /bundle."""
        for name in ("bundle", "dev", "proc", "tmp"):
            (self.root / name).mkdir(exist_ok=True)
        variables = {"ROOT": self.root, "BUNDLE": bundle, "OWNER": self.config["User"], "PYTHON": sys.executable}
        command = [*self.config["Env"], *self.config["Entrypoint"], *self.config["Cmd"]]
        namespaces = ("--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc", "--uts")
        with log.open("w") as stream:
            process = subprocess.Popen(
                ["unshare", *namespaces, "sh", "-c", ENTER, "sh", *command],
                env={
                    **os.environ,
                    "LOOPBACK_UP": LOOPBACK_UP,
                    **{name: str(value) for name, value in variables.items()},
                },
                stdout=stream,
                stderr=stream,
                text=True,
            )
        with process:
            try:
                yield Container(self, process, log)
            finally:
                process.kill()


@dataclass
class Container:
    """A running image."""

    image: Image
    process: "subprocess.Popen[str]"
    log: Path

    @cached_property
    def pid(self) -> int:
        """Its process 1, as this machine numbers it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_for(lambda: children.read_text().split(), "a process")[0])

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, as `docker exec` and health checks do."""
        namespaces = ("nsenter", "--target", str(self.pid), "--pid", "--mount", "--net")
        enter = ("chroot", f"--userspec={self.image.config['User']}", "--groups=", str(self.image.root))
        whole = [*namespaces, *enter, "/usr/bin/env", "-i", *self.image.config["Env"], *command]
        return subprocess.run(whole, capture_output=True, text=True, timeout=60)

    def beside(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command of this machine in the container's network."""
        whole = ["nsenter", "--target", str(self.pid), "--net", *command]
        return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def signal(self, number: int) -> None:
        """Send a signal from outside, as a container engine does."""
        os.kill(self.pid, number)

    def wait_for_event(self, event: str, seconds: float = 60) -> None:
        def is_logged() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log.read_text()}"
            return f'"event": "{event}"' in self.log.read_text()

        wait_for(is_logged, event, seconds)


def wait_for(found: Callable[[], T], what: str, seconds: float = 60) -> T:
    """The first true result of `found`."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"{what} did not come in {seconds:g} s"
        time.sleep(0.02)
    return result


def _pip_settings() -> dict[str, str]:
    """How pip reaches its index outside, as environment variables; without folders of packages on this machine."""
    listed = output(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = (line.split("=", 1) for line in listed if "=" in line)
    settings = {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, value in pairs}
    reached = ("cert", "index-url", "proxy", "trusted-host", "timeout", "default-timeout")
    return {f"PIP_{key.replace('-', '_').upper()}": value for key, value in settings.items() if key in reached}
