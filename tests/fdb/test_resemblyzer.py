"""resemblyzer with its own weights, on espeak's voices: it separates unlike ones. It runs in another process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted_agents import copied

SIMILARITY = Path(sys.prefix) / "similarity"
NAME = "synthetic_user_interruption"
LINES = {
    "1": ("en-us", "Sure, let me tell you about fiction books instead."),
    "2": ("en-us+f3", "Sure, let me tell you about fiction books instead."),
}
RUN = "from pplex.cli import main; main()"


def say(voice: str, text: str, path: Path) -> None:
    subprocess.run(["espeak-ng", "-v", voice, "-w", path, text], check=True)


def test_unlike_voices_are_separated(tmp_path: Path) -> None:
    if not (SIMILARITY / "resemblyzer").is_dir():
        pytest.skip("resemblyzer is not installed in .venv/similarity: make test does so")
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")
    answers = copied(tmp_path / "out", f"{NAME}/1")
    shutil.copytree(answers / NAME / "1", answers / NAME / "2")
    for number, (voice, text) in LINES.items():
        say(voice, text, answers / NAME / number / "output.wav")
    say("en-us", "The train to the city was late again this morning.", tmp_path / "voice.wav")
    arguments = ["fdb", "score", answers, "--similarity", "resemblyzer", "--voice", tmp_path / "voice.wav", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(SIMILARITY), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = next(one for one in report["sections"] if one["key"] == NAME)["tables"][0]
    alike = {row[0]: row[rows["columns"].index("SSIM")] for row in rows["rows"]}
    assert alike["1"] > 0.8 > alike["2"]
    assert "smoke test" in report["settings"]["similarity"]
