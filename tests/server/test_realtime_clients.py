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

from pplex.server.realtime_protocol import RealtimeProtocol, RealtimeTerms
from pplex.server.utterances import PATIENCE_FRAMES, PAUSE_FRAMES
from pplex.server.wire import Close, CloseReason, Message

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


def python(folder: Path, *arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    """`python ARGUMENTS` with the client's packages. given: its input."""
    sound = {"MICROPHONE": str(VOICE), "LOUDSPEAKER": str(folder / "played.s16")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(CLIENTS), **sound},
        capture_output=True,
        input=given,
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


VALIDATE = """
import sys
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
adapter = TypeAdapter(RealtimeServerEvent)
print(*(type(adapter.validate_json(line)).__name__ for line in sys.stdin))
"""
SESSION = {
    "type": "realtime",
    "instructions": "You are kind.",
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "tool_choice": "required",
    "max_output_tokens": 100,
    "tracing": "auto",
    "audio": {
        "input": {
            "format": {"type": "audio/pcmu"},
            "transcription": {"model": "whisper-1", "language": "en"},
            "noise_reduction": {"type": "near_field"},
            "turn_detection": {"type": "semantic_vad", "eagerness": "auto"},
        },
        "output": {"format": {"type": "audio/pcma"}, "voice": "NATF0", "speed": 1.2},
    },
}
MESSAGE = {"id": "m", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("session.update", {"session": SESSION}),
    ("session.update", {"session": {"audio": {"input": {"turn_detection": None, "transcription": None}}}}),
    ("session.update", {"session": {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}}),
    ("conversation.item.create", {"item": MESSAGE}),
    ("conversation.item.retrieve", {"item_id": "m"}),
    ("conversation.item.create", {"item": {"type": "function_call_output", "call_id": "c", "output": "{}"}}),
    ("conversation.item.retrieve", {"item_id": "x"}),
    ("conversation.item.truncate", {"item_id": "x", "content_index": 0, "audio_end_ms": 3}),
    ("conversation.item.delete", {"item_id": "x"}),
    ("input_audio_buffer.commit", {}),
    ("input_audio_buffer.clear", {}),
    ("response.create", {"response": {"metadata": {"a": "b"}}}),
    ("response.create", {}),
    ("response.cancel", {}),
    ("response.create", {}),
)


def every_event() -> list[Message]:
    """At least one of each kind that the server sends, in each of its forms."""
    protocol = RealtimeProtocol(RealtimeTerms(voices=("NATF0",), tells_speech=True))
    silence, loud = np.zeros(1920, np.float32), np.full(1920, 0.1, np.float32)
    events = protocol.opened()
    for kind, fields in ASKED:
        events += getattr(protocol.parse(json.dumps({"type": kind, **fields})), "answers", ())
    for _ in range(PATIENCE_FRAMES):
        events += protocol.encode(silence, "")()
    for pcm, text in (*[(loud, " one")] * 4, *[(silence, "")] * PAUSE_FRAMES, (loud, " two")):
        protocol.decode(bytes([0x10 if pcm is loud else 0xFF]) * 640, 4000)
        events += protocol.encode(pcm, text)()
    return events + protocol.farewell(CloseReason(Close.TRY_LATER, "Too late.", "queue"))[0]


@needs_openai
def test_every_event_has_the_types_of_openais_client(tmp_path: Path) -> None:
    """The client itself reads loosely, but Pipecat and openai-agents are strict."""
    events = list(map(str, every_event()))
    kinds = {json.loads(event)["type"] for event in events}
    more = {"cleared", "committed", "speech_started", "speech_stopped"}
    items = {"deleted", "truncated", "retrieved"}
    expected = KINDS | {"error"} | {f"input_audio_buffer.{each}" for each in more}
    assert kinds == expected | {f"conversation.item.{each}" for each in items}
    done = python(tmp_path, "-c", VALIDATE, given="\n".join(events))
    assert done.returncode == 0 and len(done.stdout.split()) == len(events), done.stderr
