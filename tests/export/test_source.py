"""Finding a checkpoint: folders, and repositories of a stand-in for the hub that speaks as much HTTP as fetching one takes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, REQUIRED_FILES
from pplex.export.source import Source, resolve
from pplex.runtime.errors import CheckpointError

REPO = "someone/some-model"
COMMIT = "0123456789abcdef" * 2 + "01234567"
OTHER_COMMIT = "f" * 40
NEEDED = (CONFIG_FILE, *REQUIRED_FILES)


class Hub(ThreadingHTTPServer):
    """One repository, its branch main at COMMIT; what goes wrong is set from outside."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {name: (name * 100).encode() for name in (*NEEDED, "README.md", "voices/extra.wav")}
        self.token: str | None = None  # needed to fetch files where set
        self.licence_accepted = True
        self.broken: dict[str, int] = {}  # start of a path -> status to answer it with
        self.cut: set[str] = set()  # files of which half is sent, once
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()

    def fetched(self) -> set[str]:
        """Files whose content was asked for."""
        return {line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line}


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        status = next((status for start, status in hub.broken.items() if path.startswith(start)), None)
        if status is not None:
            self.reply(status, b"broken")
        elif path in (f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/{COMMIT}"):
            self.reply_json({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]})
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self.reply(404, b"", "RevisionNotFound")
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            self.reply_json([self.entry(name, data) for name, data in hub.files.items()])
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self.reply_file(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        else:
            self.reply(404, b"", "RepoNotFound")

    do_HEAD = do_GET

    @staticmethod
    def entry(name: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def reply_file(self, name: str) -> None:
        hub = self.server
        if hub.token is not None and self.headers["Authorization"] != f"Bearer {hub.token}":
            self.reply(401, b"", "GatedRepo")
        elif not hub.licence_accepted:
            self.reply(403, b"", "GatedRepo")
        elif name not in hub.files:
            self.reply(404, b"", "EntryNotFound")
        else:
            cut = self.command == "GET" and name in hub.cut
            if cut:
                hub.broken[f"/{REPO}/resolve/{COMMIT}/{name}"] = 500  # and nothing more when asked for the rest
            self.reply(200, hub.files[name], cut=cut)

    def reply_json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode())

    def reply(self, status: int, data: bytes, error: str = "", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub that the client's settings point to, and an empty cache. (The client reads its environment but once.)"""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
    hub.stop()


def refusal(source: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        resolve(source, revision)
    return str(error.value)


class TestFolder:
    def test_is_used_as_it_is(self, tmp_path: Path) -> None:
        assert resolve(tmp_path) == Source(tmp_path, None, None)
        assert resolve(str(tmp_path)) == Source(tmp_path, None, None)

    def test_comes_before_a_repository_of_that_name(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / REPO).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert resolve(REPO) == Source(Path(REPO), None, None)
        assert hub.asked == []

    def test_has_no_revisions(self, tmp_path: Path) -> None:
        assert "has no revisions" in refusal(str(tmp_path), "main")

    @pytest.mark.parametrize(
        "name", ["", "/no/such/folder", "no-such-folder", "./a/b", "a/b/c", "a/b c", "../b", "a/..b"]
    )
    def test_neither_folder_nor_repository(self, hub: Hub, name: str) -> None:
        assert f"{name} is neither a folder nor the name of a repository" in refusal(name)
        assert hub.asked == []

    def test_file(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/model.safetensors").touch()
        monkeypatch.chdir(tmp_path)
        assert "is neither a folder" in refusal("a/model.safetensors")


class TestRepository:
    def test_needed_files_of_the_commit_are_fetched(self, hub: Hub) -> None:
        source = resolve(REPO)
        assert (source.repo, source.revision) == (REPO, COMMIT)
        assert {path.name: path.read_bytes() for path in source.folder.iterdir()} == {
            name: hub.files[name] for name in NEEDED
        }
        assert hub.fetched() == set(NEEDED)

    @pytest.mark.parametrize("revision", ["main", COMMIT])
    def test_revision(self, hub: Hub, revision: str) -> None:
        assert resolve(REPO, revision).revision == COMMIT

    def test_config_is_not_needed(self, hub: Hub) -> None:
        del hub.files[CONFIG_FILE]
        assert resolve(REPO).revision == COMMIT

    def test_second_call_fetches_nothing(self, hub: Hub) -> None:
        first = resolve(REPO)
        hub.asked.clear()
        assert resolve(REPO) == first
        assert hub.fetched() == set()

    @pytest.mark.parametrize("revision", [None, COMMIT])
    def test_second_call_without_a_hub(self, hub: Hub, revision: str | None) -> None:
        first = resolve(REPO)
        hub.stop()
        assert resolve(REPO, revision) == first

    def test_token_from_the_environment(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.token = "hf_secret"
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert resolve(REPO).revision == COMMIT

    def test_settings_from_the_environment(self, hub: Hub, tmp_path: Path) -> None:
        program = f"from pplex.export.source import resolve; print(resolve({REPO!r}).folder)"
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        folder = Path(done.stdout.strip())
        assert folder.is_relative_to(tmp_path / "home")
        assert {path.name for path in folder.iterdir()} == set(NEEDED)


class TestRefusals:
    def test_licence_not_accepted_and_not_logged_in(self, hub: Hub) -> None:
        hub.token = "hf_secret"
        message = refusal(REPO)
        assert f"Accept its licence on {hub.url}/{REPO}, then log in (hf auth login, or set HF_TOKEN)" in message

    def test_licence_not_accepted(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.licence_accepted = False
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert "Accept its licence" in refusal(REPO)

    def test_forbidden_for_another_reason(self, hub: Hub) -> None:
        hub.broken[f"/{REPO}/resolve"] = 403
        assert f"Access to {REPO} is restricted" in refusal(REPO)

    def test_no_such_repository(self, hub: Hub) -> None:
        message = refusal("someone/else")
        assert "There is no folder someone/else, and no repository either unless it is private" in message
        assert f"{hub.url}/someone/else" in message

    def test_private_repository(self, hub: Hub) -> None:
        hub.broken["/api"] = 401  # what the hub says of private and missing ones alike
        assert "unless it is private" in refusal(REPO)

    def test_no_such_revision(self, hub: Hub) -> None:
        assert f"{REPO} has no revision v9. Its branches" in refusal(REPO, "v9")

    def test_hub_down_and_nothing_cached(self, hub: Hub) -> None:
        hub.stop()
        message = refusal(REPO)
        assert f"{REPO} could not be fetched from {hub.url}" in message
        assert "ConnectError" in message
        assert "Check the connection" in message

    def test_offline_mode_and_nothing_cached(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()
        assert "HF_HUB_OFFLINE" in refusal(REPO)
        assert hub.asked == []

    def test_endpoint_that_is_no_hub(self, hub: Hub) -> None:
        hub.broken["/"] = 418
        assert "could not be fetched" in refusal(REPO)

    @pytest.mark.parametrize("file", REQUIRED_FILES)
    def test_repository_without_a_needed_file(self, hub: Hub, file: str) -> None:
        del hub.files[file]
        message = refusal(REPO)
        assert f"at revision {COMMIT} is no checkpoint of this model: it lacks {file}." in message


class TestCutShort:
    def test_file_cut_short_is_none(self, hub: Hub, tmp_path: Path) -> None:
        hub.cut.add(LM_FILE)
        assert "could not be fetched" in refusal(REPO)
        half = len(hub.files[LM_FILE]) // 2
        assert not list(tmp_path.rglob(LM_FILE))
        assert all(path.stat().st_size != half for path in tmp_path.rglob("*") if path.is_file())

    def test_half_a_snapshot_is_no_checkpoint_without_a_hub(self, hub: Hub) -> None:
        hub.cut.add(LM_FILE)
        refusal(REPO)
        hub.stop()
        assert "the cache holds no whole copy of it" in refusal(REPO)

    def test_next_call_completes_it(self, hub: Hub) -> None:
        hub.cut.add(LM_FILE)
        refusal(REPO)
        hub.cut.clear()
        hub.broken.clear()
        assert (resolve(REPO).folder / LM_FILE).read_bytes() == hub.files[LM_FILE]
