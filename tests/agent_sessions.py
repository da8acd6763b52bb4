"""Sessions of frameworks for agents, each in a process of its own: tests/server/agents has their scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from folders import TINY
from serving import Running

SCRIPTS = Path(__file__).parent / "server/agents"
AGENTS = Path(sys.prefix) / "agents"
VOICE = TINY / "checkpoint/voices/synthetic.wav"
KEY = "secret-key"
DEFECT = """
from pplex.runtime.session import Runtime
step = Runtime.step
def fail_later(self, heard, frames=[]):
    frames.append(1)
    if len(frames) > 30:
        raise RuntimeError("planted")
    return step(self, heard)
Runtime.step = fail_later
"""


def script_of(
    name: str, *arguments: str, given: str = "", microphone: Path = VOICE, speaks_s: float | None = None
) -> str:
    """What a script prints. given: its input. microphone: a recording of its user, who sends audio for `speaks_s` only."""
    sound = {"MICROPHONE": str(microphone)} | ({} if speaks_s is None else {"SPEAKS_S": str(speaks_s)})
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments],
        env={**os.environ, "PYTHONPATH": str(AGENTS), **sound},
        capture_output=True,
        input=given,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def report_of(
    server: Running, framework: str, protocol: str, seconds: float, key: str = KEY, **user: Any
) -> dict[str, Any]:
    """What came back in a session: of livekit, pipecat or openai, over live or realtime. user: as for `script_of`."""
    said = script_of(f"{framework}_agent.py", protocol, server.url, key, str(seconds), **user)
    report: dict[str, Any] = json.loads(said.splitlines()[-1])
    return report
