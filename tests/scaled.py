"""`pplex-export scale` in a process of its own, with its replicas."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving import MAIN, Running

START_S = 180
COMMAND = [sys.executable, "-c", MAIN, "scale"]


class Scaled(Running):
    """The replicas of a running `scale`."""

    bundle: Path

    def replicas(self) -> list[int]:
        """The process ids of the replicas."""
        found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and self._is_replica(path)]
        return sorted(found)

    def _is_replica(self, path: Path) -> bool:
        try:
            title, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:  # it has just ended
            return False
        return title.startswith(b"ray::ServeReplica") and f"{self.folder}/token".encode() in variables

    @property
    def folder(self) -> str:
        return self._advice()[0].removesuffix("/token")

    def _advice(self) -> tuple[str, str]:
        """The token file and the address of Ray, as the command prints them."""
        match = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+) .* --address (\S+)", self.log.read_text())
        assert match is not None
        return match[1], match[2]

    def update(self, *arguments: str) -> "subprocess.Popen[str]":
        """Run the command again for the same Ray, as the first run advises."""
        token, address = self._advice()
        variables = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
        command = [*COMMAND, str(self.bundle), *OPTIONS, "--port", str(self.port), *arguments, "--address", address]
        return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def metrics(self, name: str) -> dict[str, float]:
        """A metric's value for each replica."""
        lines = self.get("/metrics")[1]
        return {one: float(value) for one, value in re.findall(rf'^{name}{{replica="(\w+)"}} (\S+)$', lines, re.M)}


OPTIONS = ("--device", "cpu", "--threads", "1", "--slots", "2", "--one-batch-size", "--resume-seconds", "6")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(bundle: Path, log: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """The command in a process group of its own, so that a test can press Ctrl-C."""
    command = [*COMMAND, str(bundle), *OPTIONS, *arguments]
    with log.open("w") as stream:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env={**os.environ, **variables}, process_group=0
        )


@contextmanager
def scaling(bundle: Path, log: Path, *arguments: str, **variables: str) -> Iterator[Scaled]:
    """`pplex-export scale BUNDLE OPTIONS ARGUMENTS`, once it is ready. It must still run at the end."""
    process = start(bundle, log, "--port", str(free_port()), *arguments, **variables)
    assert process.stdout is not None
    with process, process.stdout:
        try:
            url = process.stdout.readline().strip()
            assert url, f"it did not start:\n{log.read_text()[-3000:]}"
            running = Scaled(url, process, log)
            running.bundle = bundle
            yield running
            assert process.poll() is None, f"it ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        finally:
            end(process)


def end(process: "subprocess.Popen[str]") -> None:
    """Two signals: the second does not wait for conversations."""
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
    process.wait(60)
    if process.stdout is not None:
        process.stdout.close()
