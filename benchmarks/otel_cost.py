"""What `serve --otel` costs for a frame: the processor time of a conversation's spans, compared with that of its frames.

    python benchmarks/otel_cost.py BUNDLE [--seconds 10] [--sessions 8] [--conversations 2000]

Frames have no spans, so a conversation of `--seconds` shares the cost of its spans among its frames. The spans are made and
sent by the code of the server, to a collector in another process. The time of a frame is that of a real server in a load
test without traces: it depends on the machine and on the sessions, far more than on traces.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

FRAMES_PER_S = 12.5
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
    parser.add_argument("--seconds", type=float, default=10.0, help="of a conversation")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--conversations", type=int, default=2000)
    given = parser.parse_args()
    spans_us, frame_us = spans(given.conversations), frame(given.bundle, given.sessions, given.seconds)
    more_us = spans_us / (given.seconds * FRAMES_PER_S)
    facts = {"spans_us": spans_us, "frame_us": frame_us, "more_us": more_us, "more_percent": 100 * more_us / frame_us}
    print(json.dumps({name: round(value, 4) for name, value in facts.items()}, indent=2))


def spans(conversations: int) -> float:
    """Processor time of one conversation's spans, made and sent, in microseconds."""
    from pplex.server.otel import OtelTracing

    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.stdout.readline().strip()}"
        tracing = OtelTracing()
        began = time.process_time()
        for i in range(conversations):
            tracing.accept({})
            trace = tracing.begin(f"{i:012x}", "opus")
            for stage in ("queue", "prime", "connection"):
                with trace.stage(stage) as facts:
                    facts |= {"cause": "client", "frames": 125, "late_frames": 0}
            trace.end("client")
            time.sleep(0.001)  # the queue of the SDK must not overflow: spans that it drops cost less
        tracing.close()
        used_s = time.process_time() - began
        collector.kill()
    return 1e6 * used_s / conversations


def frame(bundle: Path, sessions: int, seconds: float) -> float:
    """Processor time of the server for a frame, in microseconds, while a load test runs."""
    serve = [*COMMAND, "serve", str(bundle), "--port", "0", "--slots", str(sessions)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        while not _is_ready(url):
            time.sleep(0.1)
        before = _used(url)
        load = [*COMMAND, "load", url, "--sessions", str(sessions), "--minutes", str(seconds / 60)]
        subprocess.run(load, check=True, stdout=sys.stderr)
        after = _used(url)
        server.terminate()
    return 1e6 * (after[0] - before[0]) / (after[1] - before[1])


def _is_ready(url: str) -> bool:
    try:
        return bool(json.loads(_get(f"{url}/ready"))["ready"])
    except urllib.error.HTTPError:
        return False


def _used(url: str) -> tuple[float, float]:
    """Processor seconds of the server, and frames that it has answered."""
    page = _get(f"{url}/metrics")
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return float(values["process_cpu_seconds_total"]), float(values["pplex_frames_total"])


def _get(url: str) -> str:
    with urllib.request.urlopen(url) as page:
        return str(page.read().decode())


if __name__ == "__main__":
    main()
