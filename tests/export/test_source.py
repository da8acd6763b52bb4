"""Finding a checkpoint: folders, and repositories of a stand-in for the hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Hub
from hub_stand_in import COMMIT, NEEDED, TOKEN, Repo

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE, VOICES_FILE
from pplex.export.source import INDEX_FILE, CheckpointSource, resolve, wanted_files
from pplex.runtime.errors import CheckpointError


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

    @pytest.mark.parametrize("file", [LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE])
    def test_repository_without_a_needed_file(self, hub: Hub, repo: Repo, file: str) -> None:
        del repo.files[file]
        assert f"is not a checkpoint of this model: it lacks {file}." in hub.ask(repo.name)["error"]
        assert repo.sent() <= {CONFIG_FILE}, "the list of files is enough to know"


class TestWantedFiles:
    """Which files of a repository are downloaded."""

    PARTS = (MIMI_FILE, TEXT_TOKENIZER_FILE)

    @pytest.mark.parametrize(
        "weights",
        [
            (LM_FILE, INDEX_FILE, "consolidated.safetensors", "model.q8.safetensors"),
            (INDEX_FILE, "consolidated.safetensors", "model.q8.safetensors"),
            ("consolidated.safetensors", "model.q8.safetensors"),
            ("model.q8.safetensors",),
        ],
    )
    def test_the_best_form_of_the_weights_is_chosen(self, weights: tuple[str, ...]) -> None:
        assert wanted_files({*weights, *self.PARTS, "lora.safetensors"}, {}) == [weights[0], *self.PARTS]

    def test_an_index_brings_its_shards(self) -> None:
        index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
        wanted = wanted_files({INDEX_FILE, *self.PARTS}, {}, index)
        assert wanted == [INDEX_FILE, "model-1.safetensors", "model-2.safetensors", *self.PARTS]

    def test_the_configuration_may_name_files(self) -> None:
        config = {"moshi_name": "hiki.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "t.model"}
        names = [*config.values()]
        assert wanted_files([*names, LM_FILE, *self.PARTS], config) == names
        assert wanted_files([LM_FILE, *names[1:]], config) == names, "as in a folder, no other file takes its place"
        assert wanted_files([], config) == names, "what a repository lacks is named too"

    def test_voices_are_an_archive_a_folder_both_or_missing(self) -> None:
        folder = ["voices/A.pt", "voices/B.pt"]
        others = ["voices/A.wav", "voices/deep/C.pt"]
        assert wanted_files([*folder, *others, VOICES_FILE], {})[3:] == [VOICES_FILE, *folder]
        assert wanted_files([*folder, *others], {})[3:] == folder
        assert wanted_files(self.PARTS, {})[3:] == []

    def test_shards_and_voices_in_a_folder_are_fetched(self, hub: Hub, repo: Repo) -> None:
        for file in (LM_FILE, VOICES_FILE):
            del repo.files[file]
        shards = ["model-1.safetensors", "model-2.safetensors"]
        repo.files[INDEX_FILE] = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
        repo.files |= {name: b"x" for name in (*shards, "model-3.safetensors", "voices/A.pt")}
        folder = Path(hub.ask(repo.name)["folder"])
        assert all((folder / name).is_file() for name in (INDEX_FILE, *shards, "voices/A.pt"))
        assert "model-3.safetensors" not in repo.sent()

    def test_a_missing_shard_is_named_before_the_others_are_fetched(self, hub: Hub, repo: Repo) -> None:
        del repo.files[LM_FILE]
        repo.files |= {INDEX_FILE: b'{"weight_map": {"a": "one", "b": "two"}}', "one": b"x"}
        assert "it lacks two." in hub.ask(repo.name)["error"]
        assert "one" not in repo.sent()

    @pytest.mark.parametrize(
        "names, words",
        [
            (["lora.safetensors"], "It has an adapter. Name the repository of the base model, and add its adapter:"),
            (["moshi.gguf"], "The weights in moshi.gguf are for another library"),
            (["pytorch_model.bin", "voices/A.pt"], "convert pytorch_model.bin with safetensors"),
            (["consolidated.safetensors"], "copy these files from there into this repository"),
            ([INDEX_FILE], "Name a repository with the files of nvidia/personaplex-7b-v1, or another revision"),
            (["notes.txt"], "Name a repository with the files of nvidia/personaplex-7b-v1, or another revision"),
        ],
    )
    def test_a_repository_that_is_no_checkpoint_gets_the_advice_that_a_folder_gets(
        self, hub: Hub, repo: Repo, names: list[str], words: str
    ) -> None:
        index = b'{"weight_map": {"a": "one.safetensors"}}'
        repo.files = {CONFIG_FILE: b"{}", **{name: index if name == INDEX_FILE else b"x" for name in names}}
        error = hub.ask(repo.name)["error"]
        assert "is not a checkpoint of this model: it lacks " in error and words in error, error

    @pytest.mark.parametrize(
        "file, content", [(CONFIG_FILE, b"{"), (CONFIG_FILE, b'{"lm": {"dim": -1}}'), (INDEX_FILE, b"[]")]
    )
    def test_a_damaged_description_is_refused_before_the_weights(
        self, hub: Hub, repo: Repo, file: str, content: bytes
    ) -> None:
        if file == INDEX_FILE:
            del repo.files[LM_FILE]
        repo.files[file] = content
        assert file in hub.ask(repo.name)["error"]
        assert LM_FILE not in repo.sent()


class TestHubsOwnWords:
    """The hub says why it refuses: in a header, or in the body of its answer."""

    REVIEW = "Your request to access model someone/model is awaiting a review from the repo authors."
    TOKEN_RIGHTS = "Please enable access to public gated repositories in your fine-grained token settings."

    @pytest.mark.parametrize("sentence", [REVIEW, TOKEN_RIGHTS])
    def test_of_a_gated_repository_come_before_our_advice(self, hub: Hub, repo: Repo, sentence: str) -> None:
        repo.licence_accepted, repo.sentence = False, sentence
        error = hub.ask(repo.name, token=TOKEN)["error"]
        assert error.index(f"The hub says: {sentence}") < error.index("Accept its licence on")
        assert "fine-grained token" in error

    @pytest.mark.parametrize("in_body", [False, True])
    @pytest.mark.parametrize("status", [401, 403])
    def test_of_the_list_of_files_are_shown(self, hub: Hub, repo: Repo, status: int, in_body: bool) -> None:
        repo.broken["revision"], repo.sentence, repo.in_body = status, "Invalid user token.", in_body
        assert "The hub says: Invalid user token." in hub.ask(repo.name, token="hf_old")["error"]


class TestBrokenServer:
    def test_a_cut_connection_continues_where_it_broke(self, hub: Hub, repo: Repo) -> None:
        repo.files[LM_FILE] = bytes(range(256)) * (24 << 12)  # the library writes pieces of 10 MB
        repo.cut.add(LM_FILE)
        repo.resumable = True
        assert Path(hub.ask(repo.name)["folder"], LM_FILE).read_bytes() == repo.files[LM_FILE]
        assert f"RANGE {LM_FILE} {10 << 20}" in repo.asked

    @pytest.mark.parametrize("what", [LM_FILE, VOICES_FILE])
    def test_a_server_error_that_passes_is_tried_again(self, hub: Hub, repo: Repo, what: str) -> None:
        repo.failures[what] = 1
        assert Path(hub.ask(repo.name)["folder"], what).read_bytes() == repo.files[what]

    def test_a_server_error_of_the_list_is_reported_or_the_cache_used(self, hub: Hub, repo: Repo) -> None:
        repo.broken["revision"] = 500
        assert "HfHubHTTPError" in hub.ask(repo.name)["error"]
        repo.broken.clear()
        first = hub.ask(repo.name)
        repo.broken["revision"] = 500
        assert hub.ask(repo.name) == first

    @pytest.mark.parametrize("file", [LM_FILE, VOICES_FILE])
    def test_a_file_of_a_wrong_length_is_refused_and_not_kept(self, hub: Hub, repo: Repo, file: str) -> None:
        repo.short.add(file)
        error = hub.ask(repo.name)["error"]
        assert "should be of size" in error and "run this again" in error and "force_download" not in error
        repo.short.clear()
        assert Path(hub.ask(repo.name)["folder"], file).read_bytes() == repo.files[file]

    def test_a_file_at_another_address_is_fetched(self, hub: Hub, repo: Repo) -> None:
        repo.elsewhere |= {LM_FILE, CONFIG_FILE}
        assert Path(hub.ask(repo.name)["folder"], LM_FILE).read_bytes() == repo.files[LM_FILE]

    def test_a_cache_that_cannot_be_written_is_named(self, hub: Hub, repo: Repo) -> None:
        (hub.home / "hub").mkdir(exist_ok=True)
        blocked = hub.home / "hub" / f"models--{repo.name.replace('/', '--')}"
        blocked.write_text("not a folder")
        error = hub.ask(repo.name)["error"]
        assert "cannot be written" in error and "HF_HOME" in error


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
        cut.broken.clear()
        assert Path(hub.ask(cut.name)["folder"], LM_FILE).read_bytes() == cut.files[LM_FILE]
