"""What the README tells its reader to type works, as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serving import serving

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the "by hand" block have been run."""
    folder = tmp_path_factory.mktemp("readme")
    soundfile.write(folder / "user.wav", np.random.default_rng(0).normal(0, 0.1, 24_000), 24_000)
    (block,) = [block for block in blocks("sh") if "synth demo/checkpoint" in block]
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "pplex-export"
        command = [sys.executable, "-c", "from pplex.cli import main; main()", *arguments]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    return folder


def test_commands(demo: Path) -> None:
    assert soundfile.info(demo / "agent.wav").frames == 24_000
    assert (demo / "agent.json").stat().st_size > 0


def test_python(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo / "bundle").symlink_to("demo/bundle")
    monkeypatch.chdir(demo)
    (snippet,) = blocks("python")
    names: dict[str, object] = {"pcm": np.zeros(1920, np.float32)}
    exec(snippet, names)
    assert names["reply"].pcm.shape == (1920,)  # type: ignore[attr-defined]
    assert list(names["replies"]) == [names["session"]]  # type: ignore[call-overload]


def test_serving(demo: Path) -> None:
    (block,) = [block for block in blocks("sh") if "serve demo/bundle" in block]
    serve, load = (shlex.split(line, comments=True) for line in block.splitlines())
    assert serve[:3] == ["pplex-export", "serve", "demo/bundle"] and load[:2] == ["pplex-export", "load"]
    with serving(demo / "demo/bundle", demo, *serve[3:]) as server:
        command = [sys.executable, "-c", "from pplex.cli import main; main()", *load[1:]]
        command[command.index("http://127.0.0.1:8998")] = server.url
        result = subprocess.run(command, capture_output=True, text=True)
        assert "4 ready, 0 refused, 0 failed" in result.stdout, result.stdout + result.stderr
