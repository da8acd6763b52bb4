"""The command: its options, and what it leaves behind."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from callers import ask, call, run, speech
from click.testing import CliRunner
from scaled import COMMAND, OPTIONS, Scaled, end, free_port, scaling, start

from pplex.cli import main
from pplex.runtime.bundle import Bundle


def _processes(marker: str) -> dict[str, str]:
    """The commands and environments of running processes with `marker` in one of them."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            command, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if path.name != str(os.getpid()) and marker.encode() in command + variables and command:
            found[command.replace(b"\0", b" ").decode(errors="replace")] = variables.decode(errors="replace")
    return found


def _folder(marker: str) -> Path:
    """The folder of a running `scale`, as its processes know it. Other tests run the command, too."""
    tokens = {
        match[1] for text in _processes(marker).values() if (match := re.search(r"RAY_AUTH_TOKEN_PATH=([^\0]+)", text))
    }
    (token,) = tokens
    return Path(token).parent


def test_ctrl_c_lets_conversations_finish_and_leaves_nothing_behind(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The name of a variable finds every process that the command starts."""
    marker = f"PPLEX_MARKER_{os.getpid()}"
    process = start(tiny_bundle.folder, tmp_path / "log", "--port", str(free_port()), **{marker: "1"})
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, (tmp_path / "log").read_text()
        folder = _folder(marker)
        assert folder.exists()

        async def visit() -> int:
            async with call(url) as caller:
                await caller.handshake()
                os.killpg(process.pid, signal.SIGINT)
                await caller.talk(speech(30))
                return caller.ws.close_code or 0

        assert run(visit()) == 0  # still open: the client ended it
        assert process.wait(60) == 0
    finally:
        end(process)
    assert not folder.exists()
    deadline = time.monotonic() + 10
    while _processes(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _processes(marker)


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGKILL,)], ids=["twice", "killed"])
def test_an_impatient_end_leaves_no_process(
    tiny_bundle: Bundle, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    """Two signals in a conversation; and the command itself is killed, so that nobody can remove its folder."""
    marker = f"PPLEX_MARKER_{os.getpid()}_{len(numbers)}"
    process = start(tiny_bundle.folder, tmp_path / "log", "--port", str(free_port()), **{marker: "1"})
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url, (tmp_path / "log").read_text()
    folder = _folder(marker)

    async def visit() -> int:
        async with call(url) as caller:
            await caller.handshake()
            for number in numbers:
                process.send_signal(number)
                await asyncio.sleep(0.7)
            return await caller.closed()

    assert run(visit()) in (1001, 1006)
    assert process.wait(60) == (0 if len(numbers) == 2 else -signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _processes(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _processes(marker)
    end(process)
    if numbers == (signal.SIGKILL,):
        shutil.rmtree(folder)
    assert not folder.exists()


def test_a_start_that_is_stopped_or_fails_leaves_nothing_behind(tiny_bundle: Bundle, tmp_path: Path) -> None:
    marker = f"PPLEX_MARKER_{os.getpid()}"
    process = start(tiny_bundle.folder, tmp_path / "log", "--port", str(free_port()), **{marker: "1"})
    time.sleep(6)  # somewhere in the start of Ray
    folder = _folder(marker)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert not folder.exists()
    end(process)
    port = str(free_port())
    with subprocess.Popen(
        ["python3", "-m", "http.server", "--bind", "127.0.0.1", port], stderr=subprocess.DEVNULL
    ) as taken:
        time.sleep(1)
        other = start(tiny_bundle.folder, tmp_path / "log", "--port", port, **{marker: "1"})
        assert other.wait(30) == 1
        end(other)
        assert f"Cannot listen on 127.0.0.1:{port}" in (tmp_path / "log").read_text()
        taken.kill()
    assert not _processes(marker)


def test_serves_without_haproxy_for_a_few_conversations(tiny_bundle: Bundle, tmp_path: Path) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            await (await caller.handshake()).talk(speech(3))
            caller.drop()
        async with call(url, resume=caller.session["resume"]) as again:
            await again.handshake()
            await again.ws.send_bytes(b"\1" + bytes(3))
            assert await again.closed() == 1007

    with scaling(tiny_bundle.folder, tmp_path / "log", RAY_SERVE_ENABLE_HA_PROXY="0") as running:
        run(visit(running.url))
        status, text, _ = ask(running, "/api/chat?audio=mp3", method="POST")
        assert (status, text) == (400, "audio is 'mp3', but must be opus, s16 or f32.\n")
        assert running.get("/")[0] == 200


def test_another_replica_starts_when_three_quarters_of_the_slots_are_used(tiny_bundle: Bundle, tmp_path: Path) -> None:
    async def visit(running: Scaled) -> None:
        async with call(running.url) as first, call(running.url) as second:
            await first.handshake()
            await second.handshake()
            await asyncio.to_thread(running.wait_for, lambda: running.get("/ready")[0] == 200, 90)
            async with call(running.url) as third:
                await (await third.handshake()).talk(speech(2))

    with scaling(tiny_bundle.folder, tmp_path / "log", "--replicas", "1..2", "--idle-seconds", "100") as running:
        run(visit(running), 120)


def test_many_conversations_without_haproxy_are_refused_with_the_reason(tiny_bundle: Bundle) -> None:
    command = [*COMMAND, str(tiny_bundle.folder), *OPTIONS, "--port", str(free_port()), "--replicas", "1..17"]
    refused = subprocess.run(
        command, env={**os.environ, "RAY_SERVE_ENABLE_HA_PROXY": "0"}, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "17 replicas with 2 slots are 34 conversations" in refused.stderr
    assert "at most 32 in time" in refused.stderr


@pytest.mark.parametrize("replicas", ["0", "3..2", "three", "1..", "-1", "1...3"])
def test_a_number_of_replicas_that_cannot_be_is_refused(replicas: str) -> None:
    result = CliRunner().invoke(main, ["scale", "bundle", "--replicas", replicas])
    assert result.exit_code == 2
    assert "is not a number of replicas" in result.output


def test_config_is_for_serve_deploy_and_names_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.setenv("PPLEX_TOKEN", "secret")
    path = tmp_path / "serve.yaml"
    monkeypatch.setenv("PPLEX_CONTROL_TOKEN", "secret")
    arguments = ["scale", "/models/bundle", "--replicas", "1..8", "--slots", "32", "--max-minutes", "90"]
    arguments += ["--allow", "control", "--memory-window", "2000"]
    result = CliRunner().invoke(main, [*arguments, "--config", str(path)])
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(path.read_text())
    ServeDeploySchema.model_validate(content)
    (application,) = content["applications"]
    assert application["args"]["bundle"] == "/models/bundle"
    assert (application["args"]["allow_control"], application["args"]["memory_window"]) == (True, 2000)
    (deployment,) = application["deployments"]
    assert deployment["graceful_shutdown_timeout_s"] > 90 * 60
    assert deployment["max_ongoing_requests"] > 32
    assert deployment["autoscaling_config"]["max_replicas"] == 8
    assert "secret" not in path.read_text() + result.output
    assert f"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S='{90 * 60 + 30 + 120 + 60}'" in result.output
