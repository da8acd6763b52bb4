"""`build` of a repository on the hub: what is checked before the download, and what a signal or a network does to it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapters import write_adapter
from hub_client import Hub, wait_until
from hub_stand_in import Repo

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE
from pplex.export.staging import whole_folder
from pplex.runtime.bundle import is_bundle


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("home"))
    yield hub
    hub.close()


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = Repo(f"someone/model{len(hub.repos)}")
    hub.repos[repo.name] = repo
    return repo


def assert_no_weights_were_sent(repo: Repo) -> None:
    assert repo.sent() <= {CONFIG_FILE}, repo.asked


class TestBeforeTheDownload:
    def test_a_folder_that_is_no_bundle_is_refused_before_the_hub_is_asked(
        self, hub: Hub, repo: Repo, tmp_path: Path
    ) -> None:
        (tmp_path / "notes.txt").touch()
        done = hub.command("build", repo.name, "--out", tmp_path)
        assert done["code"] == 1 and "is not a bundle" in done["error"] and repo.asked == []

    @pytest.mark.parametrize("out", ["/proc/bundle", "/dev/null/bundle"])
    def test_a_place_that_cannot_be_written_is_refused_before_the_hub_is_asked(
        self, hub: Hub, repo: Repo, out: str
    ) -> None:
        done = hub.command("build", repo.name, "--out", out)
        assert done["code"] == 1 and f"{out} cannot be written" in done["error"] and repo.asked == []

    def test_a_bundle_that_another_process_builds(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        with whole_folder(tmp_path / "bundle", is_bundle, resumable=True) as folder:
            done = hub.command("build", repo.name, "--out", tmp_path / "bundle")
            (folder / "x").touch()
        assert done["code"] == 1 and "is being built by another process" in done["error"] and repo.asked == []

    @pytest.mark.parametrize(
        "options, words",
        [
            (["--capacity", "3001"], "--capacity 3001 is out of range"),
            (["--precision", "fp8", "--calibration", "none"], "needs a calibration"),
            (["--precision", "int4", "--calibration", "no-recordings"], "no-recordings does not exist"),
            (["--precision", "fp32", "--calibration", "no-recordings"], "Only fp8, int4"),
            (["--gpu", "rtx-4080", "--precision", "fp16"], "RTX 4080"),
        ],
    )
    def test_options_that_do_not_fit_the_model(
        self, hub: Hub, repo: Repo, tmp_path: Path, options: list[str], words: str
    ) -> None:
        done = hub.command("build", repo.name, "--out", tmp_path / "bundle", *options)
        assert done["code"] == 1 and words in done["error"], done
        assert_no_weights_were_sent(repo)

    @pytest.mark.parametrize(
        "tensor, options, words",
        [
            (None, [], "does not exist. Name a safetensors file with --lora"),
            ("text_linear.lora_A.weight", [], "The scaling of"),
            ("text_linear.weight", ["--lora-scaling", "2"], "is not an adapter"),
        ],
    )
    def test_an_adapter_that_cannot_be_used(
        self, hub: Hub, repo: Repo, tmp_path: Path, tensor: str | None, options: list[str], words: str
    ) -> None:
        adapter = tmp_path / "lora.safetensors"
        if tensor:
            write_adapter(adapter, {tensor: torch.zeros(4, 32)})
        done = hub.command("build", repo.name, "--out", tmp_path / "bundle", "--lora", adapter, *options)
        assert done["code"] == 1 and words in done["error"], done
        assert_no_weights_were_sent(repo)

    def test_an_adapter_that_the_configuration_asks_for(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        repo.files |= {CONFIG_FILE: b'{"lora": true, "lora_name": "mine.safetensors"}', "mine.safetensors": b"x"}
        done = hub.command("build", repo.name, "--out", tmp_path / "bundle")
        advice = f"hf download {repo.name} mine.safetensors config.json --local-dir adapter\n  --lora adapter/mine"
        assert done["code"] == 1 and "says lora: true" in done["error"] and advice in done["error"], done
        assert_no_weights_were_sent(repo)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("file", [LM_FILE, MIMI_FILE])
    def test_a_disk_too_small_for_the_download(self, hub: Hub, repo: Repo, tmp_path: Path, file: str) -> None:
        repo.announced[file] = 10**15
        done = hub.command("build", repo.name, "--out", tmp_path / "bundle", "--precision", "int4")
        assert done["code"] == 1 and "1000000.0 GB for the download" in done["error"], done
        assert "HF_HOME" in done["error"] and "Nothing was downloaded." in done["error"]
        assert "for the bundle" in done["error"], "both are on one disk"
        assert_no_weights_were_sent(repo)

    def test_a_download_and_a_bundle_on_two_disks(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        other = Path("/dev/shm")
        if not other.is_dir() or other.stat().st_dev == hub.home.stat().st_dev:
            pytest.skip("/dev/shm is not another file system here")
        repo.announced[LM_FILE] = 10**15
        done = hub.command("build", repo.name, "--out", other / tmp_path.name)
        assert "1000000.0 GB for the download" in done["error"] and "for the bundle" not in done["error"], done


class TestSignals:
    @pytest.mark.parametrize(
        "stop, stalled",
        [
            (signal.SIGINT, LM_FILE),
            (signal.SIGTERM, LM_FILE),
            (signal.SIGINT, "revision"),
            (signal.SIGTERM, CONFIG_FILE),
        ],
    )
    def test_end_a_download_at_once_and_whole_files_are_kept(
        self, hub: Hub, repo: Repo, tmp_path: Path, stop: signal.Signals, stalled: str
    ) -> None:
        repo.stalled.add(stalled)
        repo.files[LM_FILE] = bytes(32 << 20)  # half of it arrives, in pieces of 10 MB
        process = hub.start("build", repo.name, "--out", tmp_path / "bundle", "--precision", "int4")
        expected = len(repo.files) if stalled == LM_FILE else 1
        wait_until(lambda: f"GET {stalled}" in repo.asked and len(repo.asked) >= expected)
        if stalled == LM_FILE:
            wait_until(lambda: self.is_kept(hub, repo, MIMI_FILE) and self.is_kept(hub, repo, TEXT_TOKENIZER_FILE))
            wait_until(lambda: any(path.suffix == ".incomplete" and path.stat().st_size for path in hub.cached(repo)))
        began = time.monotonic()
        process.send_signal(stop)
        _, errors = process.communicate()
        assert time.monotonic() - began < 3.0, "one second, and a busy machine"
        assert process.returncode == 1 and "Traceback" not in errors, errors
        assert not [path for path in hub.cached(repo) if path.suffix == ".incomplete"]
        assert not list(tmp_path.iterdir())
        if stalled == LM_FILE:
            assert "3 of 4 files are complete and stay in" in errors, errors
            assert re.search(rf"Not kept: {LM_FILE} \(.* had arrived\)", errors), errors
            repo.stalled.clear()
            repo.asked.clear()
            hub.ask(repo.name)
            assert repo.sent() == {LM_FILE}, "the next call fetches only what is missing"

    @staticmethod
    def is_kept(hub: Hub, repo: Repo, file: str) -> bool:
        return any(path.name == file and path.is_file() for path in hub.cached(repo))

    def test_the_files_of_another_process_are_left_alone(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        repo.stalled.add(LM_FILE)
        blobs = hub.home / "hub" / f"models--{repo.name.replace('/', '--')}" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / "0123.89ab.incomplete").write_bytes(b"of another process")
        process = hub.start("build", repo.name, "--out", tmp_path / "bundle")
        wait_until(lambda: f"GET {LM_FILE}" in repo.asked)
        wait_until(lambda: len([path for path in blobs.iterdir() if path.suffix == ".incomplete"]) == 2)
        process.terminate()
        process.communicate()
        assert [path.name for path in blobs.iterdir() if path.suffix == ".incomplete"] == ["0123.89ab.incomplete"]


class TestNetwork:
    """The variables that the hub's library reads when it is imported: each in a process of its own."""

    CODE = """
import sys
from pplex.export.source import resolve
from pplex.runtime.errors import CheckpointError
try:
    print(resolve(sys.argv[1]).folder)
except CheckpointError as error:
    print(error)
"""

    def answer(self, hub: Hub, repo: Repo, **environment: str) -> str:
        """The folder of the repository, or the error."""
        command, variables = (
            [sys.executable, "-W", "error", "-c", self.CODE, repo.name],
            {**hub.environment, **environment},
        )
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
    def test_a_proxy_is_used(self, hub: Hub, repo: Repo, variable: str) -> None:
        """The stand-in is the proxy of a hub that does not exist."""
        variables = {"HF_ENDPOINT": "http://hub.invalid", "NO_PROXY": "", variable: hub.url}
        folder = Path(self.answer(hub, repo, **variables))
        assert (folder / LM_FILE).read_bytes() == repo.files[LM_FILE]

    def test_a_proxy_that_refuses_is_named(self, hub: Hub, repo: Repo) -> None:
        variables = {"HF_ENDPOINT": "https://hub.invalid", "NO_PROXY": "", "HTTPS_PROXY": hub.url}
        error = self.answer(hub, repo, **variables)
        assert "ProxyError: 407" in error and "HTTPS_PROXY" in error

    @pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
    def test_the_cache_is_where_the_variable_says(self, hub: Hub, repo: Repo, tmp_path: Path, variable: str) -> None:
        place = tmp_path / "cache"
        others = {"HF_HUB_CACHE": str(place / "hub")} if variable == "HF_HOME" else {}
        folder = Path(self.answer(hub, repo, **{variable: str(place), **others}))
        assert place in folder.parents and (folder / LM_FILE).is_file()
        assert os.listdir(tmp_path) == ["cache"] and not hub.cached(repo)

    def test_offline_and_not_in_the_cache(self, hub: Hub, repo: Repo) -> None:
        assert "HF_HUB_OFFLINE" in self.answer(hub, repo, HF_HUB_OFFLINE="1")
        assert repo.asked == []
