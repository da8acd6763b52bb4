"""What the way through HAProxy and Ray Serve adds to a reply, in one run with `serve`.

    python benchmarks/scale_path.py BUNDLE [--minutes 0.5] [--rounds 3] [--beside] [--out results.json]

Each round has two parts. Beside each other on the same three replicas: half of the conversations come through HAProxy, and
the others directly to the servers in the replicas, so that both have the same batches and the same processors. Then in
turns: all conversations at three processes of `serve`, and all at three replicas of `scale`. --beside leaves the second
part out. The callers start at random parts of a frame.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fleet_ray import running_with_ray
from fleet_servers import MAIN, running

from pplex.measure.machine import machine
from pplex.measure.tables import aligned

REPLICAS, SLOTS = 3, 8
SERVED = ("--slots", str(SLOTS), "--threads", "1", "--device", "cpu", "--resume-seconds", "0")
SETTLE_S = 10.0  # after the start of Ray, which works on
LISTENING = "0A"  # a state in /proc/net/tcp


@dataclass(frozen=True)
class Row:
    """The replies to all callers of one way. Times are means of the load tests at the same time, in ms."""

    way: str
    sessions: int
    p50_ms: float
    p99_ms: float
    answered: int
    unanswered: int

    def to_cells(self) -> tuple[str, ...]:
        numbers = (f"{self.p50_ms:.1f}", f"{self.p99_ms:.1f}", f"{self.answered:,}", str(self.unanswered))
        return (self.way, str(self.sessions), *numbers)


async def measured(way: str, urls: Sequence[str], sessions: int, minutes: float) -> Row:
    """One load test for each URL, all at once."""
    found = await asyncio.gather(*(_load(url, sessions, minutes) for url in urls))
    speech = [one["latency"]["speech"] for one in found]
    frames = [one["frames"] for one in found]
    return Row(
        way,
        sessions * len(urls),
        mean(one["p50_ms"] for one in speech),
        mean(one["p99_ms"] for one in speech),
        sum(one["answered"] for one in frames),
        sum(one["sent"] - one["answered"] for one in frames),
    )


async def _load(url: str, sessions: int, minutes: float) -> dict[str, Any]:
    options = ["--sessions", str(sessions), "--minutes", str(minutes), "--audio", "s16", "--scatter", "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        MAIN,
        "load",
        url,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    return dict(json.loads(output))


async def beside(bundle: Path, minutes: float, log: Path) -> list[Row]:
    """The rows of callers who come both ways at the same time."""
    async with running_with_ray(bundle, REPLICAS, SERVED, log) as fleet:
        await asyncio.sleep(SETTLE_S)
        through = [fleet.ready[0].url] * REPLICAS
        direct = [_server_of(process) for process in fleet.replicas()]
        half = SLOTS // 2
        ways = (("through HAProxy", through), ("beside it, directly", direct))
        return await asyncio.gather(*(measured(way, urls, half, minutes) for way, urls in ways))


async def in_turns(bundle: Path, minutes: float, log: Path) -> list[Row]:
    """The rows of `serve` and of `scale`."""
    async with running(bundle, REPLICAS, SERVED, log) as servers:
        urls = [server.url for server in servers.ready]
        alone = await measured("serve, three processes", urls, SLOTS, minutes)
    async with running_with_ray(bundle, REPLICAS, SERVED, log) as fleet:
        await asyncio.sleep(SETTLE_S)
        scaled = await measured("scale, three replicas", [fleet.ready[0].url] * REPLICAS, SLOTS, minutes)
    return [alone, scaled]


def _server_of(process: int) -> str:
    """The address of the server in a replica, which no other process needs to know."""
    for port in _ports(process):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
                if "X-Pplex-Replica" not in answer.headers and "slots" in json.load(answer):
                    return f"http://127.0.0.1:{port}"
        except (OSError, ValueError):  # another protocol
            continue
    raise SystemExit(f"Replica {process} has no server.")


def _ports(process: int) -> Iterable[int]:
    """The TCP ports on which a process listens."""
    links = [path.readlink() for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()]
    sockets = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", str(link)))}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENING and fields[9] in sockets:
            yield int(fields[1].rpartition(":")[2], 16)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scale_path.py", description="What the way of `scale` adds to a reply.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", action="store_true", help="leave out the part in turns")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        rounds = []
        for _ in range(asked.rounds):
            rounds.append(asyncio.run(beside(asked.bundle, asked.minutes, log)))
            rounds[-1] += [] if asked.beside else asyncio.run(in_turns(asked.bundle, asked.minutes, log))
    head = ("", "conversations", "p50 ms", "p99 ms", "answered", "not")
    print(aligned([head, *(row.to_cells() for rows in rounds for row in rows)], right=(1, 2, 3, 4, 5)))
    if asked.out:
        facts: dict[str, Any] = {"machine": machine(None, "pplex-export", "ray", "aiohttp", "onnxruntime")}
        facts["rounds"] = [[asdict(row) for row in rows] for rows in rounds]
        asked.out.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
