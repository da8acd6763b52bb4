"""Another program's idea of Twilio, unmodified, against the real server. `make test` installs it into .venv/clients."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from serving import Running, Serve

from pplex.server.twilio_protocol import TwilioProtocol
from pplex.server.twilio_start import TwilioTerms
from pplex.server.wire import StartMessage

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[2] / "docs/apis.md"
CLIENTS = Path(sys.prefix) / "clients"
TOKEN = "secret-key"

needs_streamdouble = pytest.mark.skipif(
    not (CLIENTS / "streamdouble").is_dir(),
    reason="streamdouble is not installed in .venv/clients: make test does so on x86-64 Linux",
)


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> Iterator[Running]:
    with serve("--slots", "2", "--token", TOKEN, "--protocols", "chat,twilio") as server:
        yield server


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Makes a recording of some seconds, similar to a voice."""
    folder = tmp_path_factory.mktemp("said")

    def record(seconds: float) -> Path:
        t = np.arange(round(seconds * 16_000)) / 16_000
        path = folder / f"{seconds}.wav"
        sound = 0.3 * np.sin(2 * np.pi * 300 * t) * (0.6 + 0.4 * np.sin(7 * t))
        soundfile.write(path, sound, 16_000, subtype="PCM_16")
        return path

    return record


def run_python(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(CLIENTS), **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def report_of(server: Running, recording: Path, parameters: dict[str, str], loss: float = 0.0) -> dict[str, Any]:
    url = f"ws://127.0.0.1:{server.port}/twilio"
    script = str(HERE / "streamdouble_caller.py")
    done = run_python(script, url, json.dumps(parameters), str(loss), MICROPHONE=str(recording))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_streamdouble
@pytest.mark.parametrize(("seconds", "loss"), [(10, 0.0), (3, 0.1)], ids=["10 s", "a tenth of the packets is lost"])
def test_a_call(guarded: Running, recorded: Callable[[float], Path], seconds: float, loss: float) -> None:
    parameters = {"token": TOKEN, "persona": "You are kind.", "voice": "NATM1", "seed": "5"}
    report = report_of(guarded, recorded(seconds), parameters, loss)
    assert report["exit_code"] == 0 and report["violations"] == report["unknown_events"] == []
    assert (report["frames_dropped"] > 0) == (loss > 0)
    assert 0.9 * seconds <= report["audio_received_ms"] / 1000 <= seconds + 0.5
    assert report["time_to_first_audio_ms"] < 2_000
    assert report["max_inbound_gap_ms"] < 2_000, "0.1 s on a machine that does nothing else"
    assert not report["closed_early"] and not report["timed_out"]
    guarded.wait_for(lambda: guarded.state()["used"] == 0)
    ended = [event for event in guarded.events() if event["event"] == "conversation ended"][-1]
    assert ended["cause"] == "client"


@needs_streamdouble
def test_a_call_without_the_token_ends_before_any_audio(guarded: Running, recorded: Callable[[float], Path]) -> None:
    report = report_of(guarded, recorded(1), {"token": "wrong"})
    assert report["closed_before_audio"] and report["audio_received_ms"] == 0 and report["violations"] == []


@needs_streamdouble
def test_the_example_in_the_documentation_runs(
    guarded: Running, recorded: Callable[[float], Path], tmp_path: Path
) -> None:
    (code,) = [
        code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "streamdouble" in code
    ]
    for written, meant in (
        ("localhost:8998", f"127.0.0.1:{guarded.port}"),
        ("TOKEN", TOKEN),
        ("user.wav", str(recorded(2))),
        ("agent.wav", str(tmp_path / "agent.wav")),
    ):
        assert written in code
        code = code.replace(written, meant)
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    said, rate_hz = soundfile.read(tmp_path / "agent.wav")
    assert rate_hz == 8000 and len(said) > 0.9 * 2 * rate_hz


def test_the_server_takes_what_twilio_makes_of_the_documented_twiml() -> None:
    (twiml,) = re.findall(r"```xml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    stream = ElementTree.fromstring(twiml).find("Connect/Stream")
    assert stream is not None and stream.attrib["url"] == "wss://voice.example.org/twilio"
    parameters = {each.attrib["name"]: each.attrib["value"] for each in stream.iter("Parameter")}
    terms = TwilioTerms({"NATF2": None}, is_token=lambda text: text == "TOKEN")
    start = {
        "streamSid": "MZ1",
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": parameters,
    }
    message = TwilioProtocol(terms).parse(json.dumps({"event": "start", "start": start}))
    assert isinstance(message, StartMessage)
    assert message.request.voice == "NATF2" and message.request.ignored == ()
    assert message.request.persona == "You are a waiter of the restaurant Aurora. You take orders for pickup."
