"""The image for serving: built by a real builder from the Dockerfile, run as process 1 with a read-only root."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import Builder, Container, Image, skip_without_tools, wait_for

from pplex.runtime.bundle import Bundle

LOAD = "from pplex.cli import main; main()"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    skip_without_tools()
    builder = Builder(tmp_path_factory.mktemp("images"))
    yield builder.build("localhost/pplex-export")
    builder.clean()


@pytest.fixture
def container(image: Image, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Container]:
    with image.run(tiny_bundle.folder, tmp_path / "log") as running:
        yield running


def _talk(container: Container, minutes: float) -> "subprocess.Popen[str]":
    """One conversation with a client of this machine. Its exit code is 1 if a frame gets no reply."""
    url = "http://127.0.0.1:8998"
    return container.beside(sys.executable, "-c", LOAD, "load", url, "--sessions", "1", "--minutes", str(minutes))


def _health(container: Container) -> "subprocess.CompletedProcess[str]":
    how, *command = container.image.config["Healthcheck"]["Test"]
    assert how == "CMD"
    return container.execute(*command)


def test_it_serves_and_ends_with_its_conversation(container: Container) -> None:
    container.wait_for_event("ready")
    assert _health(container).returncode == 0
    client = _talk(container, 0.05)
    container.wait_for_event("conversation begun")
    container.signal(signal.SIGTERM)
    container.wait_for_event("draining")
    said, _ = client.communicate(timeout=60)
    assert client.returncode == 0, f"{said}\n{container.log.read_text()}"
    assert container.process.wait(20) == 0


def test_process_1_ends_at_once_while_it_loads(container: Container) -> None:
    wait_for(lambda: "http://" in container.log.read_text(), "the address")
    container.signal(signal.SIGTERM)
    assert container.process.wait(20) == 0


def test_it_has_a_user_of_its_own_and_no_torch(image: Image, container: Container) -> None:
    status = Path(f"/proc/{container.pid}/status")
    wait_for(lambda: "Name:\tpplex-export" in status.read_text(), "the command")
    facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4 and facts["NSpid"].split()[-1] == "1"
    assert int(facts["CapEff"], 16) == 0 and facts["NoNewPrivs"] == "1"
    found = container.execute("python3", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert found.stdout == "None\n", found.stderr
    assert container.execute("touch", "/opt/pplex/x").returncode != 0
    assert container.execute("hf", "version").returncode == 0


def test_the_health_check_fails_if_the_server_hangs(container: Container) -> None:
    container.wait_for_event("ready")
    container.signal(signal.SIGSTOP)
    assert _health(container).returncode != 0
