"""Other people's clients of GPT-Live, unmodified, against the real server. `make test` installs them into .venv/clients."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import TINY
from serving import Running, Serve

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[2] / "docs/apis.md"
CLIENTS = Path(sys.prefix) / "clients"
VOICE = TINY / "checkpoint/voices/synthetic.wav"
KEY = "secret-key"
SENT_S = 10

needs_openai = pytest.mark.skipif(
    not (CLIENTS / "openai").is_dir(),
    reason="OpenAI's client is not installed in .venv/clients: make test does so on x86-64 Linux",
)


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> Iterator[Running]:
    with serve("--slots", "2", "--token", KEY) as server:
        yield server


def openai_caller(server: Running, folder: Path, key: str) -> "subprocess.CompletedProcess[str]":
    sound = {"MICROPHONE": str(VOICE), "LOUDSPEAKER": str(folder / "played.s16")}
    return subprocess.run(
        [sys.executable, str(HERE / "openai_caller.py"), server.url, key],
        env={**os.environ, "PYTHONPATH": str(CLIENTS), **sound},
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_openai
def test_openais_client_talks_for_ten_seconds(guarded: Running, tmp_path: Path) -> None:
    done = openai_caller(guarded, tmp_path, KEY)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["models"] == ["personaplex"]
    assert report["kinds"] == [
        "session.closed",
        "session.output_audio.delta",
        "session.output_transcript.delta",
        "session.started",
    ]
    assert report["last"] == "session.closed" and report["text"]
    played = np.frombuffer((tmp_path / "played.s16").read_bytes(), "<i2")
    assert 0.9 * SENT_S <= len(played) / 24_000 <= SENT_S + 0.5
    assert report["gap_s"] < 2, "0.1 s on a machine that does nothing else"
    guarded.wait_for(lambda: guarded.state()["used"] == 0)


@needs_openai
def test_the_example_in_the_documentation_runs(guarded: Running, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code
    script = code[1].replace("http://localhost:8998", guarded.url).replace("TOKEN", KEY)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(CLIENTS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "3840 bytes of the agent's voice" in done.stdout, done.stderr


@needs_openai
def test_openais_client_reports_a_wrong_key(guarded: Running, tmp_path: Path) -> None:
    done = openai_caller(guarded, tmp_path, "wrong")
    assert done.returncode == 1 and "AuthenticationError" in done.stderr and "This server needs a token" in done.stderr
