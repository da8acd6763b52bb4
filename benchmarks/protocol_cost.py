"""What a frame costs a server beside the model, in each protocol: JSON, base64, resampling, G.711, Opus, sockets and queues.

    python benchmarks/protocol_cost.py BUNDLE [--sessions 32] [--seconds 20] [--rounds 3] [--rows live:pcm-24k,...]

The real server holds conversations with `pplex-export load`, in real time. The figures are the processor times of the
server's event loop, its hearing and its speech thread, for each frame that was answered, while all conversations talk. The
scheduler's thread is left out: it runs the model. Rows take turns; a row's figure is the median of its rounds.

The model's step is replaced: it answers at once, with noise and some text. Otherwise frames would be dropped wherever a
machine is too slow for so many conversations, and a frame's cost would depend on that. --model runs the real one.

Processor time depends on what else the machine does, too. The yardstick shows that: the time of always the same work, in
this process, while a row is measured.
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pplex.server.options import PROTOCOLS

ROWS = (
    "chat:s16",
    "live:pcm-24k",
    "live:pcm-16k",
    "live:pcmu-8k",
    "realtime:pcm-24k",
    "twilio:pcmu-8k",
    "chat:opus",
)
TOKEN = "yardstick"  # the protocol twilio needs one
MAIN = "from pplex.cli import main; main()"
COMMAND = [sys.executable, "-c", MAIN]
STAND_IN = """
import itertools
import numpy as np
from pplex.runtime.session import Reply, Runtime
noise = np.random.default_rng(0).normal(0, 0.1, (50, 1920)).astype(np.float32)
frames, tokens = itertools.count(), np.zeros(17, np.int64)
def step(self, pcm):
    turn = next(frames)
    return {each: Reply(noise[(turn + i) % 50], " word" if turn % 4 == 0 else "", tokens) for i, each in enumerate(pcm)}
Runtime.step = step
"""
THREADS = ("event loop", "hearing", "speech")
FRAMES = "pplex_frames_total"
WARM_UP_S = 2.0
START_S = 60.0
YARDSTICK_S = 0.25

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", action="store_true", help="run the bundle's model")
    parser.add_argument("--rows", default=",".join(ROWS), help="PROTOCOL:AUDIO as for load, divided by commas")
    given = parser.parse_args()
    rows = given.rows.split(",")
    found: dict[str, list[Figures]] = {row: [] for row in rows}
    with served(given.bundle, given.sessions, given.model) as url:
        for round_ in range(given.rounds):
            for row in rows:
                found[row].append(measure(url, row, given.sessions, given.seconds))
                print(f"round {round_ + 1}, {row}: {found[row][-1]}", file=sys.stderr)
    print(json.dumps(report(found, given.sessions, given.seconds, given.model), indent=2))


@contextmanager
def served(bundle: Path, slots: int, model: bool) -> Iterator[str]:
    """The address of a server of the bundle."""
    python = [sys.executable, "-c", MAIN if model else STAND_IN + MAIN]
    command = [*python, "serve", str(bundle), "--port", "0", "--slots", str(slots)]
    command += ["--token", TOKEN, "--protocols", ",".join(PROTOCOLS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            wait_until(lambda: is_ready(url))
            yield url
        finally:
            server.terminate()


def measure(url: str, row: str, sessions: int, seconds: float) -> Figures:
    """Microseconds of each thread for a frame, while a load runs."""
    protocol, audio = row.split(":")
    minutes = (seconds + 2 * WARM_UP_S) / 60
    options = ["--protocol", protocol, "--audio", audio, "--sessions", str(sessions), "--minutes", f"{minutes:.4f}"]
    options += ["--token", TOKEN]
    began = values(url)
    with subprocess.Popen(
        [*COMMAND, "load", url, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as load:
        wait_until(lambda: values(url)["pplex_slots_used"] == sessions and values(url)[FRAMES] > began[FRAMES])
        time.sleep(WARM_UP_S)
        before, yardsticks = values(url), list[float]()
        for _ in range(round(seconds / YARDSTICK_S)):
            time.sleep(YARDSTICK_S)
            yardsticks.append(yardstick())
        after = values(url)
        load.wait()
    frames = after[FRAMES] - before[FRAMES]
    times = {name: (after[thread(name)] - before[thread(name)]) * 1e6 / frames for name in THREADS}
    late = after["pplex_late_frames_total"] - before["pplex_late_frames_total"]
    figures = {
        **times,
        "total": sum(times.values()),
        "yardstick": statistics.median(yardsticks),
        "frames": frames,
        "late frames": late,
    }
    wait_until(lambda: values(url)["pplex_slots_used"] == 0)
    return {name: round(value, 1) for name, value in figures.items()}


def report(found: dict[str, list[Figures]], sessions: int, seconds: float, model: bool) -> dict[str, object]:
    """The median of each row, and all of its rounds."""
    from pplex.measure.machine import machine

    names = (*THREADS, "total", "yardstick")
    return {
        "sessions": sessions,
        "seconds": seconds,
        "model": model,
        "microseconds per frame, median": {
            row: {name: statistics.median(each[name] for each in rounds) for name in names}
            for row, rounds in found.items()
        },
        "rounds": found,
        "machine": machine(1, "pplex-export", "aiohttp", "uvloop", "numpy", "av"),
    }


def yardstick() -> float:
    """Microseconds of a hundred messages of JSON and base64, decoded and encoded."""
    message = json.dumps({"type": "yardstick", "audio": base64.b64encode(bytes(960)).decode()})
    began = time.thread_time()
    for _ in range(100):
        event = json.loads(message)
        json.dumps({**event, "audio": base64.b64encode(base64.b64decode(event["audio"])).decode()})
    return 1e6 * (time.thread_time() - began)


def thread(name: str) -> str:
    return f'pplex_thread_seconds_total{{thread="{name}"}}'


def values(url: str) -> Figures:
    """The server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready") as page:
            return bool(json.load(page)["ready"])
    except urllib.error.HTTPError:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S
    while not holds():
        if time.monotonic() > end:
            raise SystemExit("The server did not get so far in a minute.")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
