"""Runs the replicas on this machine until a signal, or starts them on a cluster. Called by `cli.scaling`.

Ray is imported inside the functions, because it reads its environment variables at that moment.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from pplex.runtime.errors import ConfigError, EngineError
from pplex.runtime.libraries import load_library
from pplex.scale.environment import PROXY, environment, has_haproxy, own_paths
from pplex.scale.follow import Follower
from pplex.scale.options import TOKENS, ScaleOptions
from pplex.scale.signals import Signals
from pplex.server.addresses import EVERYWHERE
from pplex.server.options import ServeOptions
from pplex.server.sockets import listen

FOLDER_PREFIX = "scale-"
SHORT = 4  # characters: the path of a socket of HAProxy may have 97, and 76 of them are below our folder
CLEAN_S = 10.0  # for the processes of Ray to end
PROXY_S, LOOK_S = 30.0, 0.2  # until it answers; between looks
PYTHON_PROXY_MOST = 32  # conversations


class TooManyError(ConfigError):
    """More conversations than the proxy can carry in time."""


def run_here(options: ScaleOptions, tokens: tuple[str, ...], drain_s: float, started: Callable[[str], None]) -> None:
    """Serve until a signal; then conversations may finish for `drain_s`, or until a second signal.

    `started` gets the URL when every replica is ready. All processes that were started end, and no file stays.
    Raises PplexError.
    """
    asyncio.run(_check_address(options))
    place = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=place if len(place) <= SHORT else "/tmp"))
    signals = Signals()
    try:
        _run(options, tokens, drain_s, started, folder, signals)
    finally:
        signals.ignore()
        _clean_up(folder)


def _run(
    options: ScaleOptions,
    tokens: tuple[str, ...],
    drain_s: float,
    started: Callable[[str], None],
    folder: Path,
    signals: Signals,
) -> None:
    """Serve until a signal. All files are in `folder`."""
    (folder / "logs").mkdir()
    os.environ.update({**environment(options), PROXY: os.environ.get(PROXY, str(int(has_haproxy())))})
    os.environ.update(own_paths(folder) | {TOKENS: " ".join(tokens)})
    check_proxy(options, os.environ[PROXY] == "1")
    cluster = load_library("pplex.scale.cluster", "")
    signals.listen()  # Ray cannot end its processes before all have started
    try:
        address = cluster.start_here(options, folder)
    except SystemExit:  # Ray's handler of SIGTERM
        raise KeyboardInterrupt from None
    signals.listen()  # Ray has replaced the handlers
    cluster.deploy(cluster.with_gpus(options), check=signals.check)
    with Follower(folder / "logs", sys.stderr):
        _wait_for_proxy(_url(options))
        click.echo(_how_to_update(address, folder), err=True)
        started(_url(options))
        signals.wait(1)
        signals.during(lambda: cluster.drain(drain_s), 2)


def _clean_up(folder: Path) -> None:
    """End Ray, and remove the folder. Some processes of Ray still write while they end."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    end_s = time.monotonic() + CLEAN_S
    while (folder.exists() or _processes_of(folder)) and time.monotonic() < end_s:
        for process in _processes_of(
            folder
        ):  # such as a HAProxy that finishes the connections of an older configuration
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(LOOK_S)


def _processes_of(folder: Path) -> list[int]:
    """The processes with our folder in their command. Nothing else has its name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended, or belongs to another user
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [process for process in found if process != os.getpid()]


def run_there(options: ScaleOptions, tokens: tuple[str, ...], address: str) -> str:
    """Start the replicas on the cluster at `address`, or update them; returns the URL. Raises PplexError."""
    os.environ.update(environment(options))
    cluster = load_library("pplex.scale.cluster", "")
    cluster.connect(address)
    try:
        found = cluster.variables()
        check_proxy(options, found.get(PROXY) == "1")
        if found.get(PROXY) == "1" and (lacking := cluster.differences(options, found)):
            raise ConfigError(_how_to_start(lacking))
        cluster.deploy(cluster.with_gpus(options), tokens)
    finally:
        cluster.stop()
    return _url(options)


def check_proxy(options: ScaleOptions, has_proxy: bool) -> None:
    """Raises TooManyError for more conversations than the Python proxy of Ray Serve can carry."""
    if not has_proxy and options.conversations > PYTHON_PROXY_MOST:
        raise TooManyError(
            f"{options.most} replicas with {options.replica.slots} slots are {options.conversations} conversations. Ray "
            f"Serve's proxy in Python carries at most {PYTHON_PROXY_MOST} in time: with 128, the slowest 1% of the "
            f"frames come 350 ms late. Use HAProxy: install the extra scale, and set {PROXY}=1 on every node."
        )


def _url(options: ScaleOptions) -> str:
    host = "localhost" if options.host in EVERYWHERE else options.host
    return f"http://{f'[{host}]' if ':' in host else host}:{options.port}"


def _wait_for_proxy(url: str) -> None:
    """Wait until the proxy passes requests on to the replicas. Raises EngineError."""
    end_s = time.monotonic() + PROXY_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=PROXY_S).close()
            return
        except OSError as error:
            if time.monotonic() > end_s:
                raise EngineError(f"The replicas are ready, but the proxy at {url} does not answer: {error}") from error
        time.sleep(LOOK_S)


def _how_to_start(variables: list[str]) -> str:
    return "The nodes of this cluster need other variables. Start Ray on every node with:\n" + "\n".join(
        f"export {variable!r}" for variable in variables
    )


def _how_to_update(address: str, folder: Path) -> str:
    return (
        "To update the replicas without an interruption, run this command with your changes in another terminal, and with:\n"
        f"  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder / 'token'} ... --address {address}"
    )


async def _check_address(options: ScaleOptions) -> None:
    """Raises ConfigError if HAProxy could not listen on the address: its own message would be in a log."""
    server, _ = await listen(asyncio.Protocol, ServeOptions(host=options.host, port=options.port), 1.0)
    server.close()
