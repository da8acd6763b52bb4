"""Runs the replicas on this machine until a signal, or starts them on a cluster. Called by `cli.scaling`.

Ray is imported inside the functions, because it reads its environment variables at that moment.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pplex.runtime.errors import ConfigError
from pplex.runtime.libraries import load_library
from pplex.scale.environment import PROXY, environment, has_haproxy, own_paths
from pplex.scale.options import ScaleOptions
from pplex.server.options import ServeOptions
from pplex.server.sockets import listen

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FOLDER_PREFIX = "scale-"
SHORT = 4  # characters: the path of a socket of HAProxy may have 97, and 76 of them are below our folder
CLEAN_S = 10.0  # for the processes of Ray to end
LOOK_S = 0.1
PYTHON_PROXY_MOST = 32  # conversations


class TooManyError(ConfigError):
    """More conversations than the proxy can carry in time."""


def run_here(options: ScaleOptions, secrets: dict[str, str], drain_s: float) -> int:
    """Serve until a signal; then conversations may finish for `drain_s`, or until a second signal. Returns the exit code.

    The URL is printed when every replica is ready. All processes that were started end, and no file stays.
    Raises PplexError.
    """
    asyncio.run(_check_address(options))
    has_proxy = os.environ.get(PROXY, str(int(has_haproxy())))
    check_proxy(options, has_proxy == "1")
    load_library("ray.serve", "")
    place = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=place if len(place) <= SHORT else "/tmp"))
    (folder / "logs").mkdir()
    variables = {**os.environ, **environment(options), **own_paths(folder), PROXY: has_proxy, **secrets}
    try:
        return _run({"options": asdict(options), "folder": str(folder), "drain_s": drain_s}, variables)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # what was started must end, whatever the user presses
        _clean_up(folder)


def _run(orders: dict[str, object], variables: dict[str, str]) -> int:
    """Run `pplex.scale.here`, and report signals to it. Returns its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pplex.scale.here"], env=variables, stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    order = process.stdin.fileno()
    os.write(order, json.dumps(orders).encode() + b"\n")
    for number in SIGNALS:
        signal.signal(number, lambda *_: _report(order))
    try:
        while process.poll() is None:
            time.sleep(LOOK_S)
    finally:
        process.stdin.close()
    return process.returncode


def _report(order: int) -> None:
    with suppress(OSError):  # it has just ended
        os.write(order, b"!")


def _clean_up(folder: Path) -> None:
    """End what still runs, and remove the folder. Some processes of Ray still write while they end."""
    end_s = time.monotonic() + CLEAN_S
    while (folder.exists() or _processes_of(folder)) and time.monotonic() < end_s:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(LOOK_S)
        for process in _processes_of(
            folder
        ):  # such as a HAProxy that finishes the connections of an older configuration
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _processes_of(folder: Path) -> list[int]:
    """The processes with our folder in their command or environment. Nothing else has its name."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or belongs to another user
            if str(folder).encode() in (path / "cmdline").read_bytes() + (path / "environ").read_bytes():
                found.append(int(path.name))
    return [process for process in found if process != os.getpid()]


def run_there(options: ScaleOptions, secrets: dict[str, str], address: str) -> str:
    """Start the replicas on the cluster at `address`, or update them; returns the URL. Raises PplexError."""
    os.environ.update(environment(options))
    cluster = load_library("pplex.scale.cluster", "")
    cluster.connect(address)
    try:
        found = cluster.variables()
        check_proxy(options, found.get(PROXY) == "1")
        if found.get(PROXY) == "1" and (lacking := cluster.differences(options, found)):
            raise ConfigError(_how_to_start(lacking))
        cluster.deploy(cluster.with_gpus(options), secrets)
    finally:
        cluster.stop()
    return options.url


def check_proxy(options: ScaleOptions, has_proxy: bool) -> None:
    """Raises TooManyError for more conversations than the Python proxy of Ray Serve can carry."""
    if not has_proxy and options.conversations > PYTHON_PROXY_MOST:
        raise TooManyError(
            f"{options.most} replicas with {options.replica.slots} slots are {options.conversations} conversations. Ray "
            f"Serve's proxy in Python carries at most {PYTHON_PROXY_MOST} in time: with 128, the slowest 1% of the "
            f"frames come 350 ms late. Use HAProxy: install the extra scale, and set {PROXY}=1 on every node."
        )


def _how_to_start(variables: list[str]) -> str:
    return "The nodes of this cluster need other variables. Start Ray on every node with:\n" + "\n".join(
        f"export {variable!r}" for variable in variables
    )


async def _check_address(options: ScaleOptions) -> None:
    """Raises ConfigError if HAProxy could not listen on the address: its own message would be in a log."""
    server, _ = await listen(asyncio.Protocol, ServeOptions(host=options.host, port=options.port), 1.0)
    server.close()
