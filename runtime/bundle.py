"""A bundle on disk: its manifest, its voices, and the checks before it is used. Used by all packages."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplex.runtime.arrays import Tokens
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import BundleError, ConfigError, PplexError
from pplex.runtime.files import check_readable, is_file, read_text
from pplex.runtime.forms import NO_FORMS, Forms
from pplex.runtime.graphs import GraphSpec, graph_specs
from pplex.runtime.precision import check_precision
from pplex.runtime.voice_file import VOICES_FILE as VOICES_FILE
from pplex.runtime.voice_file import Voice, is_voices_file, read_voices_file, voices_file

SCHEMA = 5
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"
# Files of an unfinished build or change of the voices. If it is killed in its last moment, they may stay.
LOCK_FILE, STEPS_FILE, NEW_MANIFEST_FILE = ".lock", ".steps.json", "manifest.json.new"
CACHES_FOLDER = "caches"  # kernels compiled where the bundle was used; not part of the bundle
CACHE_SUFFIX = ".cache"

_KEYS = {
    "schema", "made_by", "checkpoint", "config", "precision", "choice", "calibration", "engines", "voices", "parity",
    "files", "digest",
}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A bundle with a valid manifest and checked files."""

    folder: Path
    manifest: Mapping[str, Any]
    config: ModelConfig
    precision: Mapping[str, str]  # graph -> name in BUILT
    voices: Mapping[str, Voice | Tokens] = field(repr=False)  # by name, in alphabetical order; Tokens: codes [F, 8]

    @property
    def specs(self) -> dict[str, GraphSpec]:
        return graph_specs(self.config, self.precision)

    @property
    def forms(self) -> Forms:
        """The form of each group of matrices, if the precision is mixed."""
        return (self.manifest["choice"] or {}).get("forms", NO_FORMS)

    def path(self, name: str) -> Path:
        return self.folder / name

    def graph_path(self, graph: str, on_processor: bool = False) -> Path:
        """The file of a graph or an engine. `on_processor`: of the graph's form for processors, if it has one."""
        own = processor_file(graph)
        if on_processor and own in self.manifest["files"]:
            return self.folder / own
        return self.folder / self.manifest["engines"][graph]["file"]


def processor_file(graph: str) -> str:
    """The name of a graph's form with operators of ONNX Runtime's CPU provider. Its weights are those of the graph."""
    return f"{graph}.processor.onnx"


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds only a bundle, complete or damaged. A build may then replace it.

    Raises AccessError if this user may not read it.
    """
    try:
        if not is_file(folder / MANIFEST_FILE):
            return False
        manifest = json.loads(read_text(folder / MANIFEST_FILE))
        if manifest.keys() != _KEYS:
            return False
        own = {*manifest["files"], MANIFEST_FILE, LOCK_FILE, STEPS_FILE, NEW_MANIFEST_FILE}
        return all(path.name in own or is_voices_file(path.name) or _is_caches(path) for path in folder.iterdir())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _is_caches(path: Path) -> bool:
    return path.name == CACHES_FOLDER and all(cache.suffix in (CACHE_SUFFIX, ".part") for cache in path.iterdir())


def open_bundle(
    folder: Path, verify: bool = True, unread: Callable[[Mapping[str, Any]], Collection[str]] = lambda manifest: ()
) -> Bundle:
    """Read a bundle's manifest and check every file's size and, with `verify`, its SHA-256.

    `unread` gets the manifest and returns the names of files that will not be read: their SHA-256 is not checked. If the
    bundle is changed or replaced meanwhile, the new one is opened. Raises BundleError that names every mismatch, AccessError
    that names every file this user may not read.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            return _open(folder, manifest, verify, unread)
        except (PplexError, OSError):
            if read_manifest(folder)["digest"] == manifest["digest"]:
                raise


def _open(
    folder: Path, manifest: Mapping[str, Any], verify: bool, unread: Callable[[Mapping[str, Any]], Collection[str]]
) -> Bundle:
    check_readable(*(folder / name for name in manifest["files"]))
    hashed = set(manifest["files"]) - set(unread(manifest)) if verify else set()
    problems = [problem for problem in _file_problems(folder, manifest["files"], hashed) if problem]
    if problems:
        raise BundleError(
            f"{folder} is damaged:\n  " + "\n  ".join(problems) + "\nCopy it again, or rebuild it: pplex-export build"
        )
    try:
        config = ModelConfig.from_dict(manifest["config"])
        precision = check_precision(manifest["precision"])
    except (ConfigError, AttributeError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST_FILE}: {error}") from error
    name = voices_file(manifest["files"])
    # All voices are read now, so that a loaded runtime does not need the folder.
    voices = read_voices_file(folder / name, manifest["voices"])[0] if name else {}
    return Bundle(folder, manifest, config, precision, voices)


def origin_text(manifest: Mapping[str, Any]) -> str:
    """What a bundle was made from: the repository and its commit, or a local checkpoint, and its adapter."""
    source = manifest["checkpoint"]
    origin = f"{source['repo']} at commit {source['revision']}" if source["repo"] else "a local checkpoint"
    lora = source.get("lora")
    if lora is None:
        return origin
    return f"{origin}, with the LoRA adapter {lora['file']} (rank {lora['rank']}, scaling {lora['scaling']:g})"


def parity_text(parity: Mapping[str, Any] | None) -> str:
    """The result of the short validation, as the manifest has it."""
    if parity is None or not parity["checked"]:
        return f"not validated: {parity['reason'] if parity else 'built by a version without validation'}"
    graded = _grade_text(parity.get("grade"))  # None in bundles of older versions
    if parity["passed"]:
        return f"validated: every layer, and the drift over {parity['frames']} frames, within tolerance{graded}"
    return "\n  ".join(["NOT the same model within its tolerances:", *parity["failures"]]) + graded


def _grade_text(grade: Mapping[str, Any] | None) -> str:
    if grade is None:
        return ""
    return "".join((f"\n  grade: {grade['word']}: {grade['meaning']}", *(f"; {why}" for why in grade["reasons"])))


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest, in a canonical form and without the digest itself."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The content of a manifest's file, with the right digest."""
    return (json.dumps({**manifest, "digest": manifest_digest(manifest)}, indent=2) + "\n").encode()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises BundleError if it is missing, damaged or of another version, AccessError."""
    path = folder / MANIFEST_FILE
    if not is_file(path):
        raise BundleError(f"{path.parent} is not a bundle: it has no {MANIFEST_FILE}. Make one: pplex-export build")
    try:
        manifest = json.loads(read_text(path))
    except ValueError as error:
        raise BundleError(f"{path} cannot be read: {error}. Copy the bundle again, or rebuild it.") from error
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise BundleError(f"{path} is not a manifest. Copy the bundle again, or rebuild it.")
    if manifest["schema"] != SCHEMA:
        raise BundleError(
            f"{path} has schema {manifest['schema']}, but this version reads schema {SCHEMA}. Rebuild it: pplex-export build"
        )
    if set(manifest) != _KEYS:
        raise BundleError(f"{path}: unknown or missing keys: {', '.join(sorted(set(manifest) ^ _KEYS))}. Rebuild it.")
    if manifest["digest"] != manifest_digest(manifest):
        raise BundleError(f"{path} was changed after the bundle was built. Copy the bundle again, or rebuild it.")
    return manifest


def _file_problems(
    folder: Path, files: Mapping[str, Mapping[str, Any]], hashed: Collection[str]
) -> Iterator[str | None]:
    def problem(item: tuple[str, Mapping[str, Any]]) -> str | None:
        name, expected = item
        path = folder / name
        if not is_file(path):
            return f"{name} is missing"
        if path.stat().st_size != expected["nbytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {expected['nbytes']}"
        if name in hashed and file_sha256(path) != expected["sha256"]:
            return f"{name} does not have the SHA-256 of the manifest"
        return None

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        yield from pool.map(problem, files.items())
