"""`push`: a bundle on the stand-in for the hub, and from there to another machine."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_client import Hub, wait_until
from hub_stand_in import TOKEN, Repo

from pplex.export.card import model_card
from pplex.runtime.bundle import MANIFEST_FILE, VOICES_FILE, Bundle, manifest_digest, open_bundle
from pplex.runtime.voice_changes import change_voices

NAME = "me/bundle"


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("home"))
    yield hub
    hub.close()


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    """Without repositories."""
    running_hub.repos.clear()
    return running_hub


@pytest.fixture
def push(hub: Hub, tiny_bundle: Bundle) -> Callable[..., dict[str, Any]]:
    def push(*options: str, bundle: Path = tiny_bundle.folder, token: str = TOKEN) -> dict[str, Any]:
        return hub.command("push", bundle, NAME, *options, token=token)

    return push


Push = Callable[..., dict[str, Any]]


def bundle_from(folder: Path, bundle: Bundle, repo: str | None) -> Bundle:
    """A copy of a bundle, as if it was made from another repository."""
    shutil.copytree(bundle.folder, folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["checkpoint"] |= {"repo": repo, "revision": "0" * 40 if repo else None}
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "digest": manifest_digest(manifest)}))
    return open_bundle(folder)


class TestUpload:
    def test_a_new_repository_is_private_and_gives_the_same_bundle(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, tmp_path: Path
    ) -> None:
        done = push()
        assert (done["code"], done["out"].strip()) == (0, f"{hub.url}/{NAME}"), done
        repo = hub.repos[NAME]
        assert repo.private and repo.asked.count("COMMIT") == 1
        for name in (*tiny_bundle.manifest["files"], MANIFEST_FILE):
            assert repo.files[name] == tiny_bundle.path(name).read_bytes(), name
        assert "caches" not in str(repo.files.keys())
        for name, data in repo.files.items():  # what `hf download` writes
            (tmp_path / name).write_bytes(data)
        assert hub.command("inspect", tmp_path, "--verify")["code"] == 0

    def test_public_if_asked(self, hub: Hub, push: Push) -> None:
        assert push("--public")["code"] == 0 and not hub.repos[NAME].private

    def test_a_second_push_sends_only_what_has_changed(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, tmp_path: Path
    ) -> None:
        push()
        repo = hub.repos[NAME]
        repo.files |= {"notes.txt": b"mine"}
        repo.asked.clear()
        assert (
            push(bundle=bundle_from(tmp_path / "other", tiny_bundle, "kyutai/moshiko-pytorch-bf16").folder)["code"] == 0
        )
        assert [line for line in repo.asked if line.startswith("PUT")] == []
        assert b"kyutai/moshiko" in repo.files["README.md"] and repo.files["notes.txt"] == b"mine"

    def test_files_of_the_earlier_bundle_are_removed(self, hub: Hub, push: Push) -> None:
        push()
        repo = hub.repos[NAME]
        manifest = json.loads(repo.files[MANIFEST_FILE])
        manifest["files"] |= {"temporal.engine": {}}
        repo.files |= {"temporal.engine": b"old", MANIFEST_FILE: json.dumps(manifest).encode()}
        assert push()["code"] == 0 and "temporal.engine" not in repo.files

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_it_and_the_next_push_continues(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, stop: signal.Signals
    ) -> None:
        largest = max(file["nbytes"] for file in tiny_bundle.manifest["files"].values())
        hub.repos[NAME] = repo = Repo(NAME, {".gitattributes": b""}, private=True, stalled={f"PUT {largest}"})
        process = hub.start("push", tiny_bundle.folder, NAME, HF_TOKEN=TOKEN)
        others = len(tiny_bundle.manifest["files"]) - 1
        wait_until(lambda: f"PUT {largest}" in repo.asked and len(repo.stored) >= others - 1)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1 and "The upload has stopped" in errors and "Traceback" not in errors, errors
        assert [*repo.files] == [".gitattributes"]
        repo.stalled.clear()
        repo.asked.clear()
        stored = len(repo.stored)
        assert push()["code"] == 0
        assert sum(line.startswith("PUT") for line in repo.asked) == len(repo.stored) - stored

    def test_needs_no_torch(self) -> None:
        code = "import sys, pplex.export.push, pplex.cli.hub; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestRefusals:
    @pytest.mark.parametrize("file", ["temporal.data", VOICES_FILE])
    def test_a_damaged_bundle_is_not_sent(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, tmp_path: Path, file: str
    ) -> None:
        copy = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))
        data = bytearray((copy / file).read_bytes())
        data[-1] ^= 1
        (copy / file).write_bytes(data)
        done = push(bundle=copy)
        assert done["code"] == 1 and f"{file} does not have the SHA-256" in done["error"] and not hub.repos

    @pytest.mark.parametrize("name", [".made.partial", "empty"])
    def test_an_unfinished_bundle_is_not_sent(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, tmp_path: Path, name: str
    ) -> None:
        folder = tmp_path / name
        shutil.copytree(tiny_bundle.folder, folder) if name != "empty" else folder.mkdir()
        done = push(bundle=folder)
        assert done["code"] == 1 and "pplex-export build" in done["error"] and not hub.repos

    def test_a_public_repository_needs_the_option(self, hub: Hub, push: Push) -> None:
        hub.repos[NAME] = repo = Repo(NAME, {}, private=False)
        done = push()
        assert done["code"] == 1 and f"{NAME} is public. Add --public" in done["error"] and repo.files == {}
        assert push("--public")["code"] == 0

    def test_a_private_repository_stays_private(self, hub: Hub, push: Push) -> None:
        hub.repos[NAME] = repo = Repo(NAME, {}, private=True)
        assert "stays private" in push("--public")["error"] and repo.private

    @pytest.mark.parametrize("files", [{"model.safetensors": b""}, {"README.md": b"", "train.py": b""}])
    def test_a_repository_of_something_else_is_left_alone(self, hub: Hub, push: Push, files: dict[str, bytes]) -> None:
        hub.repos[NAME] = repo = Repo(NAME, dict(files), private=True)
        done = push()
        assert done["code"] == 1 and "holds something else than a bundle" in done["error"] and repo.files == files

    @pytest.mark.parametrize("name", ["bundle", "a/b/c", "me/bad name"])
    def test_a_name_of_no_repository(self, hub: Hub, tiny_bundle: Bundle, name: str) -> None:
        done = hub.command("push", tiny_bundle.folder, name, token=TOKEN)
        assert done["code"] == 1 and f"{name} is not a repository's name" in done["error"]

    def test_without_a_login(self, hub: Hub, push: Push) -> None:
        error = push(token="")["error"]
        assert "The hub does not know this login." in error and "hf auth login" in error

    @pytest.mark.parametrize("in_body", [False, True])
    def test_a_token_that_may_only_read(self, hub: Hub, push: Push, in_body: bool) -> None:
        sentence = "You don't have the rights to create a model under the namespace me."
        hub.repos[NAME] = Repo(NAME, {}, private=True, broken={"write": 403}, sentence=sentence, in_body=in_body)
        error = push()["error"]
        assert f"This login may not write to {NAME}. The hub says: " in error and sentence in error, error
        assert "right to write" in error

    def test_hub_down_or_offline(self, running_hub: Hub, tiny_bundle: Bundle) -> None:
        done = running_hub.command("push", tiny_bundle.folder, NAME, token=TOKEN, offline=True)
        assert done["code"] == 1 and "HF_HUB_OFFLINE" in done["error"]
        running_hub.down()
        done = running_hub.command("push", tiny_bundle.folder, NAME, token=TOKEN)
        running_hub.up()
        assert (
            done["code"] == 1 and "could not be uploaded" in done["error"] and "Check the connection" in done["error"]
        )


class TestCard:
    @pytest.mark.parametrize(
        "repo, licence, words",
        [
            ("nvidia/personaplex-7b-v1", 'license_name: "nvidia-open-model-license"', "NVIDIA Open Model License"),
            ("kyutai/moshiko-pytorch-bf16", 'license: "cc-by-4.0"', "Their author is Kyutai"),
            (
                "kyutai/personaplex-rl-seamless",
                'license_name: "of-the-base-model"',
                "The licence of [kyutai/personaplex-rl",
            ),
            (None, 'license: "other"', "the checkpoint that it was made from applies"),
        ],
    )
    def test_names_the_licence_of_its_source(
        self, tiny_bundle: Bundle, tmp_path: Path, repo: str | None, licence: str, words: str
    ) -> None:
        card = model_card(bundle_from(tmp_path / "bundle", tiny_bundle, repo), NAME)
        assert licence in card and words in card and "Mimi, the codec, is by Kyutai" in card
        assert (f'base_model: "{repo}"' in card) == (repo is not None)

    def test_has_the_facts_and_the_commands(self, tiny_bundle: Bundle) -> None:
        card = model_card(tiny_bundle, NAME)
        assert "| precision | mimi_encode fp32, " in card and "ONNX Runtime, on processors" in card
        assert f"hf download {NAME} --local-dir bundle" in card and "96 steps of 80 ms" in card
        assert "not validated: built with --no-validate" in card

    def test_has_the_figures_of_the_validation(self, tiny_bundle: Bundle, tmp_path: Path) -> None:
        bundle = bundle_from(tmp_path / "bundle", tiny_bundle, None)
        measures = {"drift.text": {"value": 0.00123, "limit": 0.01}}
        parity = {"checked": True, "passed": True, "frames": 128, "failures": [], "measures": measures}
        bundle = Bundle(bundle.folder, {**bundle.manifest, "parity": parity}, bundle.config, bundle.precision, {})
        card = model_card(bundle, NAME)
        assert "over 128 frames, within tolerance" in card and "| drift.text | 0.00123 | 0.01  |" in card

    def test_says_that_it_carries_voices_from_recordings(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, tmp_path: Path
    ) -> None:
        bundle = bundle_from(tmp_path / "bundle", tiny_bundle, None)
        assert "from recordings" not in model_card(bundle, NAME)
        codes = np.zeros((20, 8), np.int64)
        for name in ("Ann", "Ben"):
            change_voices(bundle.folder, lambda voices, name=name: voices.with_recording(name, codes, "x.wav"))
        done = push(bundle=bundle.folder)
        assert "these voices, which were added from recordings: Ann, Ben. Use a real" in done["error"]
        card = hub.repos[NAME].files["README.md"].decode()
        assert "\n## Voices\n\nAdded from recordings: Ann, Ben. Use a real person's voice only" in card

    def test_names_its_adapter(self, tiny_bundle: Bundle, tmp_path: Path) -> None:
        bundle = bundle_from(tmp_path / "bundle", tiny_bundle, "kyutai/moshiko-pytorch-bf16")
        assert "adapter" not in model_card(bundle, NAME)
        lora = {"file": "lora.safetensors", "sha256": "0" * 64, "rank": 4, "scaling": 2.0}
        bundle.manifest["checkpoint"]["lora"] = lora
        card = model_card(bundle, NAME)
        assert f"at commit {'0' * 40}, with the LoRA adapter lora.safetensors (rank 4, scaling 2) |" in card
        assert "Their author is Kyutai" in card and "The licence of the adapter applies too." in card

    def test_the_notice_that_nvidia_asks_for_is_sent(
        self, hub: Hub, push: Push, tiny_bundle: Bundle, tmp_path: Path
    ) -> None:
        bundle = bundle_from(tmp_path / "bundle", tiny_bundle, "nvidia/personaplex-7b-v1")
        done = push(bundle=bundle.folder)
        assert b"Licensed by NVIDIA Corporation under" in hub.repos[NAME].files["Notice"]
        assert f"hf upload {NAME} LICENSE" in done["error"]
