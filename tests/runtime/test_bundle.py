"""A bundle with any damaged file, or a folder that is not a bundle, is refused with the file's name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pplex.runtime.bundle import (
    MANIFEST_FILE,
    SCHEMA,
    TOKENIZER_FILE,
    VOICES_FILE,
    Bundle,
    is_bundle,
    manifest_digest,
    open_bundle,
)
from pplex.runtime.errors import BundleError
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.session import Runtime

HASHED_FILES = [
    *(f"{graph}.{kind}" for graph in GRAPH_NAMES for kind in ("onnx", "data")),
    TOKENIZER_FILE,
    VOICES_FILE,
]
each_hashed_file = pytest.mark.parametrize("name", HASHED_FILES)


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle to damage: it links to the files, and `rewrite` replaces links."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in tiny_bundle.folder.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)


def flip_middle(data: bytes) -> bytes:
    return flip(data, len(data) // 2)


def flip(data: bytes, at: int, bits: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def edit(folder: Path, change: Callable[[dict[str, Any]], object], signed: bool) -> None:
    """Change the manifest; `signed`: with a matching digest."""

    def changed(data: bytes) -> bytes:
        manifest = json.loads(data)
        change(manifest)
        if signed:
            manifest["digest"] = manifest_digest(manifest)
        return json.dumps(manifest).encode()

    rewrite(folder / MANIFEST_FILE, changed)


def refusal(folder: Path, verify: bool = True) -> str:
    with pytest.raises(BundleError) as refused:
        open_bundle(folder, verify)
    return str(refused.value)


def test_every_file_of_the_folder_is_hashed(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*HASHED_FILES, MANIFEST_FILE}
    assert set(open_bundle(folder).manifest["files"]) == set(HASHED_FILES)


def test_a_copied_folder_opens_and_equals_the_original(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = open_bundle(shutil.copytree(tiny_bundle.folder, tmp_path / "elsewhere"))
    assert (copy.config, copy.manifest) == (tiny_bundle.config, tiny_bundle.manifest)
    assert all(copy.graph_path(graph).parent == copy.folder for graph in GRAPH_NAMES)


def test_voices_are_named_in_order_and_fit_the_model(tiny_bundle: Bundle) -> None:
    config = tiny_bundle.config
    assert list(tiny_bundle.voices) == sorted(tiny_bundle.voices) and len(tiny_bundle.voices) == 3
    for voice in tiny_bundle.voices.values():
        assert voice.embeddings.dtype == np.float32 and voice.embeddings.shape[1:] == (config.temporal.dim,)
        assert voice.cache.dtype == np.int64 and voice.cache.shape == (config.num_streams, config.max_delay + 3)


@each_hashed_file
def test_one_changed_byte_is_refused_with_the_file_name(folder: Path, name: str) -> None:
    rewrite(folder / name, flip_middle)
    message = refusal(folder)
    assert f"\n  {name} does not have the SHA-256" in message
    assert [other for other in HASHED_FILES if f"\n  {other} " in message] == [name]


@each_hashed_file
@pytest.mark.parametrize("verify", [True, False])
def test_truncated_file_is_refused_with_both_sizes(folder: Path, name: str, verify: bool) -> None:
    nbytes = (folder / name).stat().st_size
    rewrite(folder / name, lambda data: data[:-1])
    assert f"\n  {name} has {nbytes - 1} bytes, expected {nbytes}\n" in refusal(folder, verify)


@each_hashed_file
@pytest.mark.parametrize("verify", [True, False])
def test_missing_file_is_refused_by_name(folder: Path, name: str, verify: bool) -> None:
    (folder / name).unlink()
    assert f"\n  {name} is missing\n" in refusal(folder, verify)


def test_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / TOKENIZER_FILE).unlink()
    (folder / TOKENIZER_FILE).mkdir()
    assert f"\n  {TOKENIZER_FILE} is missing\n" in refusal(folder)


def test_all_damages_are_named_at_once(folder: Path) -> None:
    rewrite(folder / "depth.onnx", flip_middle)
    rewrite(folder / "temporal.data", lambda data: data[:1000])
    (folder / VOICES_FILE).unlink()
    message = refusal(folder)
    assert "depth.onnx does not have the SHA-256" in message
    assert "temporal.data has 1000 bytes, expected" in message
    assert f"{VOICES_FILE} is missing" in message
    assert len(message.splitlines()) == 5  # the folder, three damages, what to do


@each_hashed_file
def test_without_verification_contents_are_not_read(folder: Path, name: str) -> None:
    rewrite(folder / name, flip_middle)
    open_bundle(folder, verify=False)


@pytest.mark.slow
def test_every_changed_byte_of_the_manifest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    whole = path.read_bytes()
    path.unlink()
    for at in range(len(whole)):
        path.write_bytes(flip(whole, at, 1 << at % 8))
        assert str(path) in refusal(folder, verify=False), at


def test_every_truncation_of_the_manifest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    whole = path.read_bytes().rstrip()
    path.unlink()
    for nbytes in range(0, len(whole), 7):
        path.write_bytes(whole[:nbytes])
        assert str(path) in refusal(folder, verify=False), nbytes


def test_edited_manifest_is_refused(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["voices"].remove("NATF0"), signed=False)
    assert f"{folder / MANIFEST_FILE} was changed" in refusal(folder)


def test_a_file_swapped_together_with_its_hash_is_refused(folder: Path) -> None:
    def adopt(manifest: dict[str, Any]) -> None:
        manifest["files"]["depth.data"] = dict(manifest["files"]["temporal.data"])

    edit(folder, adopt, signed=False)
    assert f"{folder / MANIFEST_FILE} was changed" in refusal(folder)


@pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1, str(SCHEMA), None])
def test_other_schema_is_refused_with_both_numbers(folder: Path, schema: Any) -> None:
    edit(folder, lambda manifest: manifest.update(schema=schema), signed=True)
    assert f"has schema {schema}, but this version reads schema {SCHEMA}" in refusal(folder)


def test_unknown_key_is_refused_by_name(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(flavour="mint"), signed=True)
    assert "unknown or missing keys: flavour." in refusal(folder)


def test_missing_key_is_refused_by_name(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.pop("parity"), signed=True)
    assert "unknown or missing keys: parity." in refusal(folder)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda config: config.update(flavour="mint"), "flavour"),
        (lambda config: config.pop("delays"), "delays"),
        (lambda config: config["mimi"].update(flavour="mint"), "flavour"),
        (lambda config: config["temporal"].pop("capacity"), "capacity"),
        (lambda config: config.update(temporal=None), MANIFEST_FILE),
    ],
)
def test_config_of_another_shape_is_refused_by_key(
    folder: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit(folder, lambda manifest: change(manifest["config"]), signed=True)
    message = refusal(folder)
    assert named in message and str(folder / MANIFEST_FILE) in message


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b'"schema"', b"\xff\xfe", b"{" * 100])
def test_another_file_instead_of_the_manifest_is_refused(folder: Path, content: bytes) -> None:
    rewrite(folder / MANIFEST_FILE, lambda data: content)
    assert str(folder / MANIFEST_FILE) in refusal(folder)


def test_a_folder_that_is_not_a_bundle_is_refused_with_the_build_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path, tmp_path / "file", tmp_path / "nowhere"):
        assert refusal(path) == f"{path} is not a bundle: it has no {MANIFEST_FILE}. Make one: pplex-export build"


def test_a_damaged_bundle_is_not_loaded(folder: Path) -> None:
    rewrite(folder / "depth.data", flip_middle)
    with pytest.raises(BundleError, match=r"depth\.data does not have the SHA-256"):
        Runtime.load(str(folder), slots=1)


def test_compiled_kernels_are_not_files_of_the_bundle(folder: Path) -> None:
    caches = folder / "caches"
    caches.mkdir()
    (caches / "temporal.sm_89.cache").write_bytes(b"kernels")
    assert is_bundle(folder)
    open_bundle(folder)
    (caches / "notes.txt").write_text("mine")
    assert not is_bundle(folder)


def test_a_file_called_caches_is_not_ours(folder: Path) -> None:
    (folder / "caches").write_text("mine")
    assert not is_bundle(folder)
