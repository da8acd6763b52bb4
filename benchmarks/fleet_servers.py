"""Server processes of one bundle on this machine, as the replicas of a small fleet. Called by fleet_run.py."""

import asyncio
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 120.0  # until a server has loaded its bundle
MAIN = "from pplex.cli import main; main()"


@dataclass(eq=False)
class Server:
    """One process of `pplex-export serve`. `clients`: of the load generator, in slots and in the queue."""

    url: str
    process: asyncio.subprocess.Process
    clients: int = 0

    def kill(self) -> None:
        """kill -9: the process has no time to say goodbye."""
        self.process.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        """Two signals: the second does not wait for conversations."""
        for _ in range(2):
            if self.process.returncode is None:
                self.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
        await self.process.wait()


class Servers:
    """The running servers, and their common arguments."""

    def __init__(self, bundle: Path, arguments: Sequence[str], log: Path):
        self._bundle, self._arguments, self._log = bundle, arguments, log
        self.ready = list[Server]()  # in the order of their start
        self._all = list[Server]()

    async def start(self) -> float:
        """Start one more server, and wait until it is ready; returns the seconds that it took."""
        began = time.monotonic()
        with self._log.open("ab") as log:
            command = [sys.executable, "-c", MAIN, "serve", str(self._bundle), "--port", "0", *self._arguments]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        url: str = (await process.stdout.readline()).decode().strip()
        server = Server(url, process)
        self._all.append(server)
        while not url or not await asyncio.to_thread(is_ready, url):
            if not url or process.returncode is not None or time.monotonic() > began + START_S:
                raise SystemExit(f"A server did not start:\n{self._log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        self.ready.append(server)
        return time.monotonic() - began

    def kill(self, index: int) -> None:
        """Kill a server, counted from the oldest. Its clients notice by themselves, and so does the load generator."""
        self.ready.pop(index).kill()

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self._all))


@asynccontextmanager
async def running(bundle: Path, replicas: int, arguments: Sequence[str], log: Path) -> AsyncIterator[Servers]:
    """`replicas` servers that are ready; they end with the block."""
    servers = Servers(bundle, arguments, log)
    try:
        for _ in range(replicas):
            await servers.start()
        yield servers
    finally:
        await servers.stop()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
