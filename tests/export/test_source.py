"""Finding a checkpoint: folders, and repositories of a stand-in for the hub."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import COMMIT, NEEDED, TOKEN, Answer, Repo, Server

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, REQUIRED_FILES
from pplex.export.source import CheckpointSource, resolve
from pplex.runtime.errors import CheckpointError

# The hub's client reads its environment once, on import, so it runs in a separate process for all tests.
CLIENT = """
import json, os, sys
from dataclasses import asdict
from huggingface_hub import constants
from pplex.export.source import resolve
from pplex.runtime.errors import CheckpointError
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["HF_TOKEN"] = asked["token"]
    constants.HF_HUB_OFFLINE = asked["offline"]
    try:
        answer = asdict(resolve(asked["source"], asked["revision"]))
    except CheckpointError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer, default=str), flush=True)
"""


class Hub:
    """The stand-in, which can stop and restart at the same address, and its client."""

    def __init__(self, home: Path) -> None:
        self.home, self.repos, self.port, self.server = home, dict[str, Repo](), 0, None
        self.up()
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        self.client = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CLIENT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    server: Server | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        if self.server is None:
            self.server = Server(("127.0.0.1", self.port), Answer)
            self.server.repos, self.port = self.repos, self.server.server_port
            threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def down(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def ask(self, source: str, revision: str | None = None, token: str = "", offline: bool = False) -> dict[str, Any]:
        """The result of `resolve` in the client as a dict, or its "error"."""
        assert self.client.stdin is not None and self.client.stdout is not None
        asked = {"source": source, "revision": revision, "token": token, "offline": offline}
        print(json.dumps(asked), file=self.client.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.client.stdout.readline())
        return answer

    def close(self) -> None:
        self.client.communicate()
        self.down()


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("home"))
    yield hub
    hub.close()


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    running_hub.up()
    return running_hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """A new repository for every test, so that no test finds it in the cache."""
    repo = Repo(f"someone/model{len(hub.repos)}")
    hub.repos[repo.name] = repo
    return repo


class TestFolder:
    def test_is_used_as_it_is(self, tmp_path: Path) -> None:
        assert resolve(tmp_path) == CheckpointSource(tmp_path, None, None)
        assert resolve(str(tmp_path)) == CheckpointSource(tmp_path, None, None)

    def test_comes_before_a_repository_of_that_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "someone/model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert resolve("someone/model") == CheckpointSource(Path("someone/model"), None, None)

    def test_has_no_revisions(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is a folder, so --revision main does not apply"):
            resolve(tmp_path, "main")

    @pytest.mark.parametrize("name", ["", "/no/such", "no-such", "./a/b", "a/b/c", "a/b c", "../b", "a/..b", "a/b/"])
    def test_a_name_of_neither_folder_nor_repository_is_refused(self, name: str) -> None:
        with pytest.raises(CheckpointError, match=f"^{re.escape(name)} is neither a folder nor a repository name"):
            resolve(name)

    def test_a_file_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/model.safetensors").touch()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="is neither a folder"):
            resolve("a/model.safetensors")


class TestRepository:
    def test_needed_files_of_the_commit_are_fetched(self, hub: Hub, repo: Repo) -> None:
        source = hub.ask(repo.name)
        assert (source["repo"], source["revision"]) == (repo.name, COMMIT)
        found = {path.name: path.read_bytes() for path in Path(source["folder"]).iterdir()}
        assert found == {name: repo.files[name] for name in NEEDED}
        assert repo.sent() == set(NEEDED)

    @pytest.mark.parametrize("revision", ["main", COMMIT])
    def test_a_revision_resolves_to_its_commit(self, hub: Hub, repo: Repo, revision: str) -> None:
        assert hub.ask(repo.name, revision)["revision"] == COMMIT

    def test_config_is_not_needed(self, hub: Hub, repo: Repo) -> None:
        del repo.files[CONFIG_FILE]
        assert hub.ask(repo.name)["revision"] == COMMIT

    def test_second_call_fetches_nothing(self, hub: Hub, repo: Repo) -> None:
        first = hub.ask(repo.name)
        repo.asked.clear()
        assert hub.ask(repo.name) == first
        assert repo.sent() == set()

    @pytest.mark.parametrize("offline", [False, True])
    @pytest.mark.parametrize("revision", [None, COMMIT])
    def test_second_call_without_a_hub(self, hub: Hub, repo: Repo, revision: str | None, offline: bool) -> None:
        first = hub.ask(repo.name)
        hub.down()
        assert hub.ask(repo.name, revision, offline=offline) == first

    def test_licence_accepted_and_logged_in(self, hub: Hub, repo: Repo) -> None:
        repo.token = TOKEN
        assert hub.ask(repo.name, token=TOKEN)["revision"] == COMMIT


class TestRefusals:
    def test_an_unaccepted_licence_without_login_is_refused(self, hub: Hub, repo: Repo) -> None:
        repo.token = TOKEN
        advice = f"Accept its licence on {hub.url}/{repo.name}, then log in (hf auth login, or set HF_TOKEN)"
        assert advice in hub.ask(repo.name)["error"]

    def test_an_unaccepted_licence_is_refused(self, hub: Hub, repo: Repo) -> None:
        repo.licence_accepted = False
        assert "Accept its licence" in hub.ask(repo.name, token=TOKEN)["error"]

    def test_forbidden_for_another_reason(self, hub: Hub, repo: Repo) -> None:
        repo.broken = dict.fromkeys(NEEDED, 403)
        assert f"Access to {repo.name} is restricted" in hub.ask(repo.name)["error"]

    def test_a_refused_token_is_reported(self, hub: Hub, repo: Repo) -> None:
        repo.broken = dict.fromkeys(NEEDED, 401)
        error = hub.ask(repo.name, token="hf_old")["error"]
        assert "your token has expired, log in (hf auth login" in error
        assert "hf_old" not in error

    def test_a_missing_repository_is_refused(self, hub: Hub) -> None:
        error = hub.ask("someone/else")["error"]
        assert "No folder someone/else here, and no repository of this name that your login can see." in error
        assert f"Check {hub.url}/someone/else" in error

    def test_private_repository(self, hub: Hub, repo: Repo) -> None:
        repo.broken["revision"] = 401  # the hub answers the same for private and missing repositories
        assert "if it is private" in hub.ask(repo.name)["error"]

    def test_a_missing_revision_is_refused(self, hub: Hub, repo: Repo) -> None:
        assert f"{repo.name} has no revision v9. See its branches" in hub.ask(repo.name, "v9")["error"]

    def test_hub_down_and_nothing_cached(self, hub: Hub, repo: Repo) -> None:
        hub.down()
        error = hub.ask(repo.name)["error"]
        assert f"No folder {repo.name} here. The repository could not be downloaded from {hub.url}" in error
        assert "ConnectError" in error
        assert "Check the connection" in error

    def test_offline_mode_and_nothing_cached(self, hub: Hub, repo: Repo) -> None:
        assert "HF_HUB_OFFLINE" in hub.ask(repo.name, offline=True)["error"]
        assert repo.asked == []

    def test_endpoint_that_is_not_a_hub(self, hub: Hub, repo: Repo) -> None:
        repo.broken["revision"] = 418
        assert "could not be downloaded" in hub.ask(repo.name)["error"]

    @pytest.mark.parametrize("file", REQUIRED_FILES)
    def test_repository_without_a_needed_file(self, hub: Hub, repo: Repo, file: str) -> None:
        del repo.files[file]
        assert f"is not a checkpoint of this model: it lacks {file}." in hub.ask(repo.name)["error"]


class TestCutShort:
    @pytest.fixture
    def cut(self, hub: Hub, repo: Repo) -> Repo:
        """A repository with one file whose download was interrupted."""
        repo.cut.add(LM_FILE)
        assert "could not be downloaded" in hub.ask(repo.name)["error"]
        return repo

    def test_is_not_kept_and_completed_by_the_next_call(self, hub: Hub, cut: Repo) -> None:
        kept = hub.home / "hub" / f"models--{cut.name.replace('/', '--')}"
        assert kept.is_dir()
        half = len(cut.files[LM_FILE]) // 2
        assert not list(kept.rglob(LM_FILE))
        assert all(path.stat().st_size != half for path in kept.rglob("*"))

        hub.down()
        assert "the cache has no complete copy of it" in hub.ask(cut.name)["error"]

        hub.up()
        cut.cut.clear()
        cut.broken.clear()
        assert Path(hub.ask(cut.name)["folder"], LM_FILE).read_bytes() == cut.files[LM_FILE]
