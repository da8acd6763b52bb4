"""The pod of deploy/kubernetes as processes: its very commands, probes and signals, with the tiny bundle."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from callers import call, run, speech
from hub_client import Hub
from hub_stand_in import COMMIT
from manifests import Object, containers, pods, rendered

from pplex.runtime.bundle import MANIFEST_FILE, Bundle

TOKEN = "a-token-of-the-secret"
# The commands of the image, by the Python of the tests.
COMMANDS = {
    "pplex-export": "from pplex.cli import main; main()",
    "hf": "from huggingface_hub.cli.hf import main; main()",
}


def container(folder: str, name: str) -> Object:
    (template,) = (template for _, template in pods(rendered(folder)))
    (found,) = (each for each in containers(template) if each["name"] == name)
    return found


def begin(found: Object, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run an init container in a folder, with our commands in the path as in the image."""
    commands = folder.parent / "commands"
    commands.mkdir(exist_ok=True)
    for name, code in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
        (commands / name).chmod(0o755)
    path = f"{commands}:{os.environ['PATH']}"
    own = {each["name"]: each["value"] for each in found.get("env", []) if "value" in each}
    command = [*found["command"], *found["args"]]
    environment = {**os.environ, **own, **variables, "PATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def sha256(bundle: Path) -> str:
    return hashlib.sha256((bundle / MANIFEST_FILE).read_bytes()).hexdigest()


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.folder, tmp_path / "copy")


def test_a_whole_bundle_is_verified(copy: Path) -> None:
    done = begin(container("base", "verify"), copy, BUNDLE_SHA256=sha256(copy))
    assert done.returncode == 0, done.stderr


def test_a_damaged_bundle_is_refused(copy: Path) -> None:
    damaged = max(copy.glob("*.onnx*"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    done = begin(container("base", "verify"), copy, BUNDLE_SHA256=sha256(copy))
    assert done.returncode == 1 and damaged.name in done.stderr


def test_another_bundle_is_refused(copy: Path) -> None:
    """A whole bundle, but not the one of the digest."""
    done = begin(container("base", "verify"), copy, BUNDLE_SHA256="0" * 64)
    assert done.returncode == 1 and f"{MANIFEST_FILE}: FAILED" in done.stdout


def test_a_missing_digest_is_an_error_that_says_how_to_get_it(copy: Path) -> None:
    done = begin(container("base", "verify"), copy, BUNDLE_SHA256="")
    assert done.returncode != 0 and "sha256sum BUNDLE/manifest.json" in done.stderr


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "home")
    yield hub
    hub.close()


def test_a_bundle_from_the_hub(hub: Hub, tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert hub.command("push", tiny_bundle.folder, "me/bundle", token="hf_secret")["code"] == 0
    folder = tmp_path / "empty"
    folder.mkdir()
    variables = {**hub.environment, "HF_TOKEN": "hf_secret", "BUNDLE_REPO": "me/bundle"}
    download, verify = container("example", "download"), container("example", "verify")
    refused = begin(download, folder, **variables, BUNDLE_REVISION="main")
    assert refused.returncode == 2 and "must be a commit" in refused.stderr and not list(folder.iterdir())
    done = begin(download, folder, **variables, BUNDLE_REVISION=COMMIT)
    assert done.returncode == 0, done.stderr
    checked = begin(verify, folder, BUNDLE_SHA256=sha256(tiny_bundle.folder))
    assert checked.returncode == 0, checked.stdout + checked.stderr


class Pod:
    """The server of the manifest, at a free port."""

    def __init__(self, url: str, process: "subprocess.Popen[str]", found: Object):
        self.url, self.process, self._found = url, process, found

    def probe(self, name: str) -> bool:
        """Whether an HTTP probe succeeds, as kubelet decides it: 200 to 399, in time."""
        how = self._found[name]
        assert how["httpGet"]["port"] == "http"
        try:
            with urllib.request.urlopen(self.url + how["httpGet"]["path"], timeout=how["timeoutSeconds"]) as answer:
                return bool(200 <= answer.status < 400)
        except (urllib.error.HTTPError, OSError):
            return False

    def wait_for(self, name: str, result: bool, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while self.probe(name) is not result:
            assert time.monotonic() < end and self.process.poll() is None, f"{name} is still not {result}"
            time.sleep(0.05)

    def terminate(self) -> None:
        """What kubelet does to end a pod: the command of preStop, then SIGTERM."""
        subprocess.run(self._found["lifecycle"]["preStop"]["exec"]["command"], check=True)
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(bundle: Path, log: Path, *more: str) -> Iterator[Pod]:
    found = container("base", "pplex")
    given = {"/bundle": str(bundle), "--host=0.0.0.0": "--host=127.0.0.1"}
    arguments = [given.get(argument, argument) for argument in found["args"]]
    command = [sys.executable, "-c", COMMANDS["pplex-export"], *arguments, "--port", "0", "--device", "cpu", *more]
    environment = {**os.environ, **{each["name"]: TOKEN for each in found["env"]}}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    with process, process.stdout:
        try:
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            yield Pod(url, process, found)
        finally:
            process.kill()


def test_the_server_starts_fills_and_ends_as_its_probes_and_signals_say(tiny_bundle: Bundle, tmp_path: Path) -> None:
    async def visit(pod: Pod) -> None:
        assert pod.probe("livenessProbe")  # also while it loads
        await asyncio.to_thread(pod.wait_for, "startupProbe", True)
        async with call(pod.url, token=TOKEN) as caller:
            await caller.handshake()
            await asyncio.to_thread(pod.wait_for, "readinessProbe", False)  # its only slot is taken
            assert pod.probe("livenessProbe")
            ending = asyncio.create_task(asyncio.to_thread(pod.terminate))
            assert len(await caller.talk(speech(25))) == 25
            await ending
            assert len(await caller.talk(speech(10, seed=1))) == 10  # after SIGTERM, the conversation goes on
            assert pod.process.poll() is None and not pod.probe("readinessProbe")
        assert await asyncio.to_thread(pod.process.wait, 20) == 0

    with serving(tiny_bundle.folder, tmp_path / "log", "--slots", "1") as pod:
        run(visit(pod), 90)


def test_without_the_token_of_the_secret_nobody_talks(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with serving(tiny_bundle.folder, tmp_path / "log") as pod:
        pod.wait_for("startupProbe", True)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{pod.url}/api/chat")
