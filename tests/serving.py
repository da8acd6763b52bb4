"""The real server in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 60
MAIN = "from pplex.cli import main; main()"
COMMAND = [sys.executable, "-c", MAIN, "serve"]
WITH_LIMITS = """
import sys
from pathlib import Path
from pplex.runtime.bundle import open_bundle
from pplex.server.app import serve
from pplex.server.options import ServeOptions
from pplex.server.limits import Limits
from pplex.server.logs import start_logging
start_logging()
limits = Limits(**{limits!r})
options = ServeOptions(port=0, slots=4, threads=1, device="cpu", limits=limits, **{options!r})
serve(open_bundle(Path(sys.argv[1])), options, lambda address: print(address, flush=True))
"""


@dataclass
class Running:
    """A server that is listening and has loaded its bundle."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a plain request."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def state(self) -> dict[str, Any]:
        """The answer of /ready."""
        return json.loads(self.get("/ready")[1])

    def metric(self, name: str) -> float:
        """The value of a metric with or without labels; 0 if it has no value yet."""
        for line in self.get("/metrics")[1].splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0

    def events(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, holds: Any, seconds: float = 10) -> None:
        """Wait until holds() is true; fails after `seconds`."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"still not so after {seconds} s; the log:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)


Serve = Callable[..., AbstractContextManager[Running]]  # takes the arguments of `serve`


@contextmanager
def serving(
    bundle: Path,
    folder: Path,
    *arguments: str,
    ready: bool = True,
    limits: Mapping[str, float] | None = None,
    options: Mapping[str, Any] = {"allow_control": True},
    prelude: str = "",
) -> Iterator[Running]:
    """`pplex-export serve BUNDLE --port 0 ARGUMENTS`; its log is in `folder`. It must still run at the end.

    `limits`: limits without a command line option; the server then has 4 slots and `options`, and takes no arguments.
    `prelude`: Python code that the process runs first.
    """
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-c", prelude + MAIN, "serve", str(bundle), "--port", "0", "--device", "cpu", *arguments]
    if limits is not None:
        command = [
            sys.executable,
            "-c",
            prelude + WITH_LIMITS.format(limits=dict(limits), options=dict(options)),
            str(bundle),
        ]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env={**os.environ})
    assert process.stdout is not None
    with process, process.stdout:
        url = process.stdout.readline().strip()
        assert url, f"the server did not start:\n{log.read_text()}"
        running = Running(url, process, log)
        try:
            if ready:
                running.wait_for(lambda: '"event": "ready"' in log.read_text(), START_S)
            yield running
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        finally:
            for _ in range(2):  # the second signal does not wait for conversations
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.05)
            process.wait(20)
