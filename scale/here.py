"""The process that runs Ray on this machine: `python -m pplex.scale.here`, started by `scale.launch`.

Ray changes what signals do, and SIGTERM during its end would leave its processes. So the command is a process without Ray.
It sends this process its orders on standard input: the options as a line of JSON, then a byte for each signal. The end of
the input means that the command was killed.
"""

import json
import os
import select
import sys
import time
import urllib.request
from pathlib import Path

from pplex.runtime.errors import EngineError, PplexError
from pplex.scale import cluster
from pplex.scale.bridge import REPLICA
from pplex.scale.follow import Follower
from pplex.scale.options import ReplicaOptions, ScaleOptions

PROXY_S, LOOK_S = 30.0, 0.2  # until the proxy answers; between looks


class Orders:
    """Counts the signals that the command reports. The end of the input counts as two: end at once."""

    def __init__(self, number: int):
        self._number, self._count = number, 0

    def count(self) -> int:
        while self._count < 2 and select.select([self._number], [], [], 0)[0]:
            self._count += len(os.read(self._number, 1)) or 2
        return self._count

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal."""
        if self.count():
            raise KeyboardInterrupt


def serve(options: ScaleOptions, folder: Path, drain_s: float, orders: Orders) -> None:
    """Serve until a signal; then conversations may finish for `drain_s`, or until a second signal. Raises PplexError."""
    address = cluster.start_here(options, folder)
    cluster.deploy(cluster.with_gpus(options), check=orders.check)
    with Follower(folder / "logs", sys.stderr):
        _wait_for_proxy(options, orders)
        print(_how_to_update(address, folder), file=sys.stderr, flush=True)
        print(options.url, flush=True)
        while not orders.count():
            time.sleep(LOOK_S)
        cluster.drain(drain_s)
        while orders.count() < 2 and not cluster.is_drained():
            time.sleep(LOOK_S)


def _wait_for_proxy(options: ScaleOptions, orders: Orders) -> None:
    """Wait until the proxy passes requests on to all replicas. Raises EngineError."""
    end_s, seen, reason = time.monotonic() + PROXY_S, set[str](), ""
    while len(seen) < options.least:
        try:
            with urllib.request.urlopen(f"{options.url}/health", timeout=PROXY_S) as answer:
                seen.add(answer.headers[REPLICA])
        except OSError as error:
            reason = str(error)
        if time.monotonic() > end_s:
            raise EngineError(
                f"{options.least} replicas are ready, but the proxy at {options.url} reaches {len(seen)} of them. {reason}"
            )
        orders.check()
        time.sleep(LOOK_S / 4)


def _how_to_update(address: str, folder: Path) -> str:
    return (
        "To update the replicas without an interruption, run this command with your changes in another terminal, with:\n"
        f"  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder / 'token'} ... --address {address}"
    )


def main() -> int:
    """The exit code of the command."""
    given = json.loads(_line(sys.stdin.fileno()))
    options = ScaleOptions(**{**given["options"], "replica": ReplicaOptions(**given["options"]["replica"])})
    try:
        serve(options, Path(given["folder"]), given["drain_s"], Orders(sys.stdin.fileno()))
        return 0
    except PplexError as error:
        print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Aborted!", file=sys.stderr)  # as click says it
    finally:
        cluster.stop()
    return 1


def _line(number: int) -> bytes:
    """One line, without reading more of what follows."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(number, 1)):
        line += byte
    return line


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Ray has ended; its threads would delay the end
