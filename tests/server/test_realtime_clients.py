"""OpenAI's client of the Realtime API, unmodified, against the real server. `make test` installs it into .venv/clients."""

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
import turns
from folders import TINY
from serving import Running, Serve

from pplex.server.utterances import PAUSE_FRAMES

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[2] / "docs/apis.md"
CLIENTS = Path(sys.prefix) / "clients"
VOICE = TINY / "checkpoint/voices/synthetic.wav"
KEY = "secret-key"
KINDS = {
    "conversation.item.added",
    "conversation.item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.created",
    "response.done",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.delta",
    "response.output_audio_transcript.done",
    "response.output_item.added",
    "response.output_item.done",
    "session.created",
    "session.updated",
}

needs_openai = pytest.mark.skipif(
    not (CLIENTS / "openai").is_dir(),
    reason="OpenAI's client is not installed in .venv/clients: make test does so on x86-64 Linux",
)


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> Iterator[Running]:
    with serve("--slots", "2", "--token", KEY, prelude=turns.PRELUDE) as server:
        yield server


def python(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`python ARGUMENTS` with the client's packages."""
    sound = {"MICROPHONE": str(VOICE), "LOUDSPEAKER": str(folder / "played.s16")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(CLIENTS), **sound},
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_openai
def test_openais_client_hears_whole_utterances(guarded: Running, tmp_path: Path) -> None:
    done = python(tmp_path, str(HERE / "openai_realtime_caller.py"), guarded.url, KEY)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert set(report["kinds"]) == KINDS, "and no error"
    assert report["said"][0] == ["completed", "one two"] and len(report["said"]) >= 2
    assert report["session"]["instructions"] == "You are kind."
    assert report["session"]["personaplex"] == {"voice": "NATF0", "seed": 5}
    played = np.frombuffer((tmp_path / "played.s16").read_bytes(), "<i2").astype(np.float32)
    assert len(played) >= 2 * (turns.SPOKEN + PAUSE_FRAMES) * 1920
    assert np.sqrt(np.mean(np.square(played[: turns.SPOKEN * 1920]))) > 0.13 * 32_768, "it is the agent's voice"
    guarded.wait_for(lambda: guarded.state()["used"] == 0)


@needs_openai
def test_the_example_in_the_documentation_runs(guarded: Running, tmp_path: Path) -> None:
    code = re.search(r"## Realtime\n.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code
    done = python(tmp_path, "-c", code[1].replace("http://localhost:8998", guarded.url).replace("TOKEN", KEY))
    assert done.returncode == 0 and "one two" in done.stdout, done.stderr
