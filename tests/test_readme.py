"""The commands of the README and of docs/start.md work unchanged."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serving import serving

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "README.md", ROOT / "docs" / "start.md"


def blocks(language: str) -> list[str]:
    text = "\n".join(page.read_text() for page in PAGES)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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


def test_readme_commands_run(demo: Path) -> None:
    assert soundfile.info(demo / "agent.wav").frames == 24_000
    assert (demo / "agent.json").stat().st_size > 0


def test_readme_python_runs(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo / "bundle").symlink_to("demo/bundle")
    monkeypatch.chdir(demo)
    (snippet,) = blocks("python")
    names: dict[str, object] = {"pcm": np.zeros(1920, np.float32)}
    exec(snippet, names)
    assert names["reply"].pcm.shape == (1920,)  # type: ignore[attr-defined]
    assert list(names["replies"]) == [names["session"]]  # type: ignore[call-overload]


def test_readme_serving_commands_run(demo: Path) -> None:
    (block,) = [block for block in blocks("sh") if "load http://" in block]
    serve, load = (shlex.split(line, comments=True) for line in block.splitlines())
    assert serve[:3] == ["pplex-export", "serve", "demo/bundle"] and load[:2] == ["pplex-export", "load"]
    with serving(demo / "demo/bundle", demo, *serve[3:]) as server:
        command = [sys.executable, "-c", "from pplex.cli import main; main()", *load[1:]]
        command[command.index("http://127.0.0.1:8998")] = server.url
        result = subprocess.run(command, capture_output=True, text=True)
        assert "4 ready, 0 refused, 0 failed" in result.stdout, result.stdout + result.stderr


LINK = re.compile(r"\]\(([^)\s#]+)?(#[^)\s]+)?\)")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor[1:] in headings(path), f"{page.name} links to {target}{anchor}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and page.name not in index
    ] == []
