"""Checkpoints in folders, and on a stand-in for the hub with a login and a licence."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from folders import TINY
from hub_stand_in import TOKEN, Answer, Repo, Server

from pplex.doctor.checkpoint import check_checkpoint, check_hub, hub_cache
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question

NAME = "someone/model"


class TestFolder:
    def look(self, folder: Path) -> Finding:
        (finding,) = check_checkpoint(Question("build", str(folder)))
        return finding

    def test_a_complete_one_passes(self) -> None:
        assert self.look(TINY / "checkpoint").level == OK

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        finding = self.look(tmp_path)
        assert (finding.level, finding.stops) == (PROBLEM, ("build",)) and "it lacks model.safetensors" in finding.fact
        assert "pplex-export synth" in str(finding.advice)

    def test_a_broken_torch_is_a_warning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        finding = self.look(TINY / "checkpoint")
        assert (finding.level, finding.stops) == (WARNING, ()) and "libtorch.so" in finding.fact

    def test_needs_nothing_of_the_hub(self) -> None:
        assert hub_cache(Question("build", str(TINY / "checkpoint"))) is None
        assert list(check_hub(Question("build", str(TINY / "checkpoint"), hub=True))) == []


class TestHub:
    @pytest.fixture
    def repo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repo]:
        """A repository of a running stand-in; child processes use it as the hub."""
        server = Server(("127.0.0.1", 0), Answer)
        server.repos = {NAME: Repo(NAME, token=TOKEN)}
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN,
            "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_CACHE": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield server.repos[NAME]
        server.shutdown()
        server.server_close()

    @pytest.fixture
    def ask(self) -> Callable[[], Finding]:
        def ask(name: str = NAME) -> Finding:
            (finding,) = check_hub(Question("build", name, hub=True))
            assert TOKEN not in str(finding), "the token must not be shown"
            return finding

        return ask

    def test_gives_the_weights_to_a_login(self, repo: Repo, ask: Callable[[], Finding]) -> None:
        finding = ask()
        assert finding.level == OK and "A login is set" in finding.fact
        assert repo.sent() == set(), "the weights were only asked about"

    @pytest.mark.parametrize("weights", ["consolidated.safetensors", "model.q8.safetensors", "named.safetensors"])
    def test_gives_weights_of_another_form(self, repo: Repo, ask: Callable[[], Finding], weights: str) -> None:
        repo.files[weights] = repo.files.pop("model.safetensors") * 100
        assert ask().level == OK and f"HEAD {weights}" in repo.asked

    def test_refuses_without_one(self, repo: Repo, ask: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "")
        finding = ask()
        assert (finding.level, finding.stops) == (PROBLEM, ("build",))
        assert finding.fact == f"No login is set. Access to {NAME} is restricted." and "hf auth login" in str(
            finding.advice
        )

    def test_wants_its_licence_accepted(self, repo: Repo, ask: Callable[[], Finding]) -> None:
        repo.licence_accepted = False
        assert "Accept its licence" in str(ask().advice)

    def test_does_not_know_the_name(self, repo: Repo, ask: Callable[[str], Finding]) -> None:
        assert "no repository of this name" in ask("someone/else").fact

    def test_does_not_answer(self, ask: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        finding = ask()
        assert finding.level == PROBLEM and "could not be downloaded from http://127.0.0.1:1" in finding.fact

    def test_is_not_asked_without_the_option(self, repo: Repo) -> None:
        question = Question("build", NAME)
        assert list(check_hub(question)) == []
        (finding,) = check_checkpoint(question)
        assert "was not asked" in finding.fact and "--hub" in str(finding.advice)
        assert hub_cache(question) is not None and repo.asked == []
