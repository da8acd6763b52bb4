"""run, serve, validate and bench send nothing and leave nothing behind: strace watches them."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from folders import TINY
from traced import PATIENCE_S, Room, Traced, trace, tracing, why_not

from pplex.runtime.bundle import Bundle
from pplex.runtime.environment import ORT_TELEMETRY
from pplex.server.client import Audio, connect

pytestmark = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))

MAIN = "from pplex.cli import main; main()"
CHECKPOINT, WAV = TINY / "checkpoint", TINY / "checkpoint/voices/synthetic.wav"
PLANTED = """
import pathlib, socket, subprocess, sys
pathlib.Path.home().joinpath("written").touch()
subprocess.run([sys.executable, "-c", "import os; os.mkdir(os.environ['HOME'] + '/made')"], check=True)
try:
    socket.getaddrinfo("nowhere.invalid", 443)
except OSError:
    pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("192.0.2.1", 9))
"""
EXPORT = """
import sys
from pathlib import Path
from pplex.export.checkpoint import open_checkpoint
from pplex.export.exporter import export_graph
checkpoint = open_checkpoint(Path(sys.argv[1]))
export_graph("temporal", checkpoint, checkpoint.config, Path(sys.argv[2]))
"""


def has_telemetry() -> bool:
    """Search the files of the library: an import would start its telemetry."""
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    files = Path(spec.origin).parent.glob("capi/onnxruntime_pybind11_state*.so")
    return any(ORT_TELEMETRY.encode() in file.read_bytes() for file in files)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room.make(tmp_path)


def assert_quiet(traced: Traced, room: Room, *outputs: Path) -> None:
    """No name lookup, no connection, no change except `outputs`, and no temporary file left."""
    assert not traced.looked_up and not traced.reached, traced
    assert not traced.changed_outside(room.temporary, *outputs)
    assert not list(room.home.rglob("*")) and not list(room.temporary.rglob("*"))


def test_tracer_finds_planted_activity(room: Room) -> None:
    traced = trace(PLANTED, [], room)
    assert traced.code == 0, traced.errors
    assert traced.looked_up and "192.0.2.1" in traced.reached
    assert set(traced.changed_outside(room.temporary)) == {room.home / "written", room.home / "made"}


@pytest.mark.skipif(not has_telemetry(), reason="this ONNX Runtime was built without telemetry")
@pytest.mark.parametrize("value", ["0", None])
def test_tracer_finds_enabled_telemetry(value: str | None, room: Room) -> None:
    """The operator enables it, or our package is not imported."""
    first = "import pplex.runtime\n" if value else ""
    traced = trace(f"{first}import onnxruntime", [], room, **({ORT_TELEMETRY: value} if value else {}))
    assert traced.code == 0, traced.errors
    assert any(path.is_relative_to(room.home / ".cache/Microsoft") for path in traced.changed)


def test_run_is_quiet(tiny_bundle: Bundle, room: Room) -> None:
    out = ["--voice", "none", "--output-wav", "out/agent.wav", "--output-text", "out/agent.json"]
    (room.work / "out").mkdir()
    traced = trace(MAIN, ["run", str(tiny_bundle.folder), "--input-wav", str(WAV), *out], room)
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room, room.work / "out")
    assert (room.work / "out/agent.wav").is_file()


def test_a_script_is_quiet(tiny_bundle: Bundle, room: Room) -> None:
    code = (
        "import sys, numpy as np; from pplex.runtime import Runtime; runtime = Runtime.load(sys.argv[1], slots=1)\n"
        "runtime.open(seed=1).step(np.zeros(1920, np.float32))"
    )
    traced = trace(code, [str(tiny_bundle.folder)], room)
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room)


@pytest.mark.parametrize("home", ["its own", "unwritable"])
def test_serve_is_quiet(home: str, tiny_bundle: Bundle, room: Room) -> None:
    """With and without a client; an unwritable home folder adds no line to the log."""
    environment = {"HOME": "/dev/null"} if home == "unwritable" else {}
    arguments = ["serve", str(tiny_bundle.folder), "--port", "0", "--slots", "2", "--device", "cpu"]
    with tracing(MAIN, arguments, room, **environment) as (process, traced):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        wait_until_ready(url)
        asyncio.run(talk(url))
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room)
    events = [json.loads(line)["event"] for line in traced.errors.splitlines()]
    assert events[0] == "ready" and "conversation ended" in events and events[-1] == "stopped"


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/ready", timeout=10):
            return
        time.sleep(0.05)
    raise AssertionError("the server never was ready")


async def talk(url: str) -> None:
    async with connect(url) as conversation:
        for _ in range(4):
            await conversation.send(np.zeros(1920, np.float32))
        async for event in conversation:
            if isinstance(event, Audio):
                return


def test_a_self_signed_certificate_needs_no_name_lookup(tiny_bundle: Bundle, room: Room) -> None:
    code = "from pplex.server.tls import self_signed_context; self_signed_context('127.0.0.1')"
    traced = trace(code, [], room)
    assert traced.code == 0, traced.errors
    assert not traced.looked_up and not traced.changed_outside(room.temporary)
    assert set(traced.reached) <= {"192.0.2.1", "2001:db8::1"}  # addresses of a datagram socket that sends nothing


def test_validate_is_quiet(tiny_bundle: Bundle, room: Room) -> None:
    arguments = [str(tiny_bundle.folder), "--reference", str(CHECKPOINT), "--frames", "64", "--only", "drift"]
    traced = trace(MAIN, ["validate", *arguments, "--report", "report"], room)
    assert traced.code == 0, traced.errors
    assert "<svg" in (room.work / "report/report.html").read_text()
    assert_quiet(traced, room, room.work / "report")


def test_speech_detector_is_quiet(room: Room) -> None:
    """The speech detector of validate's conversations, which themselves take too long for a test."""
    code = (
        "import numpy as np; from pplex.validate.speech.detector import SpeechDetector\n"
        "SpeechDetector()(np.zeros(24000, 'f4'))"
    )
    traced = trace(code, [], room)
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room)


def test_bench_frame_is_quiet(tiny_bundle: Bundle, room: Room) -> None:
    traced = trace(MAIN, ["bench", "frame", str(tiny_bundle.folder), "--frames", "20"], room)
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room)


def test_bench_load_is_quiet(tiny_bundle: Bundle, room: Room) -> None:
    traced = trace(MAIN, ["bench", "load", str(tiny_bundle.folder), "--runs", "1"], room)
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room)


def test_export_of_a_graph_is_quiet(room: Room) -> None:
    """The export step of `build`, `bench codec` and `bench precision`."""
    (room.work / "out").mkdir()
    traced = trace(EXPORT, [str(CHECKPOINT), "out"], room)
    assert traced.code == 0, traced.errors
    assert_quiet(traced, room, room.work / "out")
    assert (room.work / "out/temporal.onnx").is_file()
