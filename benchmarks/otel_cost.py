"""What `serve --otel` costs: processor time of the server for a frame, with and without traces, in turns.

    python benchmarks/otel_cost.py BUNDLE [--rounds 5] [--sessions 8] [--minutes 0.5]

Each conversation ends after the given time, so its spans are part of the cost. The collector is a process that only reads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from pathlib import Path

COMMAND = [sys.executable, "-c", "from pplex.cli import main; main()"]
COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Inlet(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Inlet)
print(server.server_port, flush=True)
server.serve_forever()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=0.5)
    given = parser.parse_args()
    pairs = []
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        endpoint = f"http://127.0.0.1:{collector.stdout.readline().strip()}"
        for _ in range(given.rounds):
            pairs.append([cost_ms(given, endpoint, *option) for option in ((), ("--otel",))])
            print(f"without {pairs[-1][0]:.3f} ms, with {pairs[-1][1]:.3f} ms for a frame", file=sys.stderr)
        collector.kill()
    without, traced = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        json.dumps(
            {"without_ms": without, "with_ms": traced, "more_percent": 100 * (traced / without - 1), "pairs": pairs}
        )
    )


def cost_ms(given: argparse.Namespace, endpoint: str, *option: str) -> float:
    """The server's processor time for a frame, in ms, while a load test runs."""
    serve = [*COMMAND, "serve", str(given.bundle), "--port", "0", "--slots", str(given.sessions), *option]
    variables = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "500"}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        load(url, 1, 0.02)  # loads the bundle, and imports what is imported once
        before = used(url)
        load(url, given.sessions, given.minutes)
        after = used(url)
        server.terminate()
    return 1000 * (after[0] - before[0]) / (after[1] - before[1])


def load(url: str, sessions: int, minutes: float) -> None:
    options = ["--sessions", str(sessions), "--minutes", str(minutes), "--audio", "f32"]
    while True:
        done = subprocess.run([*COMMAND, "load", url, *options], capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "still loading" not in done.stdout + done.stderr:
            raise SystemExit(done.stdout + done.stderr)


def used(url: str) -> tuple[float, float]:
    """Processor seconds of the server, and frames that it has answered."""
    with urllib.request.urlopen(f"{url}/metrics") as page:
        values = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if not line.startswith("#"))
    return float(values["process_cpu_seconds_total"]), float(values["pplex_frames_total"])


if __name__ == "__main__":
    main()
