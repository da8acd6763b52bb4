"""`pplex-export scale` as a small fleet: HAProxy chooses a replica, and Ray Serve replaces one that was killed.

Called by fleet_run.py.
"""

import asyncio
import os
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fleet_servers import MAIN, START_S, Server

MARK = "PPLEX_FLEET_RUN"  # variable that all processes of a run have


class RayServers:
    """The replicas behind one address. The load generator knows that address only."""

    def __init__(self, server: Server, replicas: int, mark: str):
        self.ready = [server]
        self._replicas, self._mark = replicas, mark

    def replicas(self) -> list[int]:
        """The processes of the replicas."""
        return _replicas(self._mark)

    def kill(self, index: int) -> None:
        """kill -9 of a replica."""
        os.kill(self.replicas()[index], signal.SIGKILL)

    async def start(self) -> float:
        """Wait until Ray Serve has replaced what was killed; returns the seconds that it took."""
        began = time.monotonic()
        while await asyncio.to_thread(_taking, self.ready[0].url) < self._replicas:
            if time.monotonic() > began + START_S:
                raise SystemExit(f"Ray Serve did not replace the killed replica in {START_S:.0f} s.")
            await asyncio.sleep(0.1)
        return time.monotonic() - began


@asynccontextmanager
async def running_with_ray(
    bundle: Path, replicas: int, arguments: Sequence[str], log: Path
) -> AsyncIterator[RayServers]:
    """`replicas` replicas that take clients; they end with the block."""
    mark = uuid.uuid4().hex
    command = [
        sys.executable,
        "-c",
        MAIN,
        "scale",
        str(bundle),
        "--replicas",
        str(replicas),
        "--port",
        str(_free_port()),
    ]
    with log.open("ab") as stream:
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, stdout=asyncio.subprocess.PIPE, stderr=stream, env={**os.environ, MARK: mark}
        )
    assert process.stdout is not None
    server = Server((await process.stdout.readline()).decode().strip(), process)
    try:
        if not server.url:
            raise SystemExit(f"The replicas did not start:\n{log.read_text()[-2000:]}")
        yield RayServers(server, replicas, mark)
    finally:
        await server.stop()


def _replicas(mark: str) -> list[int]:
    """The processes of this run's replicas."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:  # it has just ended
            continue
        if title.startswith(b"ray::ServeReplica") and mark.encode() in variables:
            found.append(int(path.name))
    return sorted(found)


def _taking(url: str) -> int:
    """How many replicas take clients."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            return len(re.findall(r"^pplex_slots{", answer.read().decode(), re.M))
    except (urllib.error.URLError, OSError):
        return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
