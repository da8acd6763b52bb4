"""Clients of the stand-in for the hub: a process that many tests ask, and commands in a process of their own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hub_stand_in import Answer, Repo, Server

# The hub's library reads its environment once, on import, so it runs in a separate process for all tests.
CLIENT = """
import json, os, sys
from dataclasses import asdict
from click.testing import CliRunner
from huggingface_hub import constants
from pplex.cli import main
from pplex.export.source import resolve
from pplex.runtime.errors import PplexError
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["HF_TOKEN"] = asked["token"]
    constants.HF_HUB_OFFLINE = asked["offline"]
    if asked.get("command"):
        done = CliRunner().invoke(main, asked["command"])
        answer = {"code": done.exit_code, "out": done.stdout, "error": done.stderr}
    else:
        try:
            answer = asdict(resolve(asked["source"], asked["revision"]))
        except PplexError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer, default=str), flush=True)
"""
OF_THE_LIBRARY = (
    "ignore:Use 'content=<...>':DeprecationWarning"  # the hub's library uploads with httpx2's older argument
)
COMMAND = [sys.executable, "-c", "from pplex.cli import main; main()"]


class Hub:
    """The stand-in, which can stop and restart at the same address, and its clients."""

    def __init__(self, home: Path) -> None:
        self.home, self.repos, self.port, self.server = home, dict[str, Repo](), 0, None
        self.up()
        self._client: subprocess.Popen[str] | None = None

    server: Server | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a client that knows only the stand-in."""
        proxies = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
        return {
            **{name: value for name, value in os.environ.items() if name not in proxies},
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.home / "hub"),
            "HF_TOKEN_PATH": str(self.home / "token"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    @property
    def client(self) -> subprocess.Popen[str]:
        if self._client is None:
            command = [sys.executable, "-W", "error", "-W", OF_THE_LIBRARY, "-c", CLIENT]
            pipe = subprocess.PIPE
            self._client = subprocess.Popen(command, env=self.environment, stdin=pipe, stdout=pipe, text=True)
        return self._client

    def up(self) -> None:
        if self.server is None:
            self.server = Server(("127.0.0.1", self.port), Answer)
            self.server.repos, self.port = self.repos, self.server.server_port
            threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def down(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def ask(self, source: str, revision: str | None = None, token: str = "", offline: bool = False) -> dict[str, Any]:
        """The result of `resolve` in the client as a dict, or its "error"."""
        return self._ask({"source": source, "revision": revision, "token": token, "offline": offline})

    def command(self, *arguments: str | Path, token: str = "", offline: bool = False) -> dict[str, Any]:
        """A command in the client: its "code", what it printed ("out") and its messages ("error")."""
        return self._ask({"command": [*map(str, arguments)], "token": token, "offline": offline})

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self.client.stdin is not None and self.client.stdout is not None
        print(json.dumps(asked), file=self.client.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.client.stdout.readline())
        return answer

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """A command in a process of its own."""
        command, variables = [*COMMAND, *map(str, arguments)], {**self.environment, **environment}
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def cached(self, repo: Repo) -> list[Path]:
        """All files that the cache has of a repository."""
        return [*(self.home / "hub" / f"models--{repo.name.replace('/', '--')}").rglob("*")]

    def close(self) -> None:
        if self._client is not None:
            self._client.communicate()
        self.down()


def wait_until(seen: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
