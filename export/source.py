"""Finds a checkpoint: a folder, or a Hugging Face repository downloaded into the hub's cache at one commit.

Called by the command line. `find` reads what decides a build, and `download` fetches the weights. The manifest records the
result.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplex.export import hub
from pplex.export.layout import (
    ADAPTER_FILE,
    INDEX_FILE,
    LM_FILE,
    MIMI_FILE,
    TEXT_TOKENIZER_FILE,
    VOICES_FILE,
    WEIGHTS_FILES,
    missing_advice,
)
from pplex.runtime.config_file import CODEC_NAME, CONFIG_FILE, TOKENIZER_NAME, WEIGHTS_NAME, ConfigFile, read_config
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import is_folder, is_there, read_text

_VOICE = re.compile(r"voices/[^/]+\.pt")
_ADVICE = "Name a repository with the files of nvidia/personaplex-7b-v1, or another revision."


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint's folder, and its repository and commit; both None for a folder that the user named."""

    folder: Path
    repo: str | None
    revision: str | None


@dataclass(frozen=True)
class Found:
    """A checkpoint that `find` found. Its weights may not be here yet.

    `names`: the needed files of a repository. `missing`: those that the cache lacks, with their sizes in bytes.
    """

    source: CheckpointSource
    files: hub.RepoFiles | None = None
    names: Collection[str] = ()
    missing: Mapping[str, int] = field(default_factory=dict)

    @property
    def described(self) -> ConfigFile:
        """What its config.json says. Raises ConfigError."""
        return read_config(self.source.folder / CONFIG_FILE)


def resolve(
    source: str | os.PathLike[str], revision: str | None = None, tell: hub.Tell = lambda line: None
) -> CheckpointSource:
    """The folder `source` if it exists, otherwise the repository of that name, downloaded at `revision`.

    Raises the errors of `find` and `download`.
    """
    return download(find(source, revision), tell)


def find(source: str | os.PathLike[str], revision: str | None = None) -> Found:
    """The folder `source` if it exists, otherwise the repository of that name, without its weights.

    `revision` is a branch, tag or commit. Of a repository, only config.json and an index of shards are downloaded. Files in
    the hub's cache are not downloaded again, and also work offline. Raises CheckpointError if neither exists, access is
    refused, or the repository lacks a needed file; ConfigError for a config.json of another model.
    """
    name = os.fspath(source)
    if name and is_folder(Path(name)):  # Path("") is the working folder
        if revision is not None:
            raise CheckpointError(
                f"{name} is a folder, so --revision {revision} does not apply. Leave it out, or name a repository."
            )
        return Found(CheckpointSource(Path(name), None, None))
    files = _list(name, revision)
    # By its name, and the smallest file first: the cache then knows the commit, and a refusal comes before the weights.
    first = CONFIG_FILE if CONFIG_FILE in files.nbytes else min(_needed(files, None, {}), key=lambda n: files.nbytes[n])
    folder = hub.fetch_files(files, [first], _silent, by_name=files.unreachable is None)
    read_config(folder / CONFIG_FILE)  # raises ConfigError for another model
    config = _read_json(folder / CONFIG_FILE)
    if INDEX_FILE in wanted_files(files.nbytes, config):
        hub.fetch_files(files, [INDEX_FILE], _silent)
    names = _needed(files, folder, config)
    return Found(CheckpointSource(folder, name, folder.name), files, names, files.uncached(names))


def download(found: Found, tell: hub.Tell = lambda line: None) -> CheckpointSource:
    """Fetch the files of a repository that the cache lacks. `tell` gets a line if a signal stops it.

    Raises CheckpointError with advice if the hub refuses, or the connection breaks.
    """
    if found.files is not None and found.missing:
        hub.fetch_files(found.files, found.missing, tell)
    return found.source


def check_access(repo: str, revision: str | None = None) -> None:
    """Ask the hub for the size of a repository's weights. Raises CheckpointError, with advice, if the hub refuses."""
    nbytes = _list(repo, revision).nbytes
    named = [name for name in WEIGHTS_FILES if name in nbytes]
    others = [
        name for name in nbytes if name.endswith(".safetensors")
    ]  # config.json may name them; it is not read here
    hub.check_access(repo, named[0] if named else max(others, key=lambda name: nbytes[name], default=LM_FILE), revision)


def wanted_files(
    names: Collection[str], config: Mapping[str, Any], index: Mapping[str, Any] | None = None
) -> list[str]:
    """The files of a repository that a build needs, and of its optional files those in `names`.

    names: the repository's files. config: its config.json, which may name the weights (`moshi_name`), the codec
    (`mimi_name`) and the tokenizer (`tokenizer_name`). index: its index of shards, if it is known. A needed file is in the
    result even if `names` lacks it.
    """
    candidates = _named(config, WEIGHTS_NAME) or list(WEIGHTS_FILES)
    weights = next((name for name in candidates if name in names), candidates[0])
    map_of_shards = (index or {}).get("weight_map")
    listed = map_of_shards.values() if weights == INDEX_FILE and isinstance(map_of_shards, dict) else ()
    shards = sorted({str(name) for name in listed})
    voices = [*([VOICES_FILE] if VOICES_FILE in names else []), *sorted(filter(_VOICE.fullmatch, names))]
    return [*([CONFIG_FILE] if CONFIG_FILE in names else []), weights, *shards, *_codec_and_tokenizer(config), *voices]


def _codec_and_tokenizer(config: Mapping[str, Any]) -> tuple[str, str]:
    return [*_named(config, CODEC_NAME), MIMI_FILE][0], [*_named(config, TOKENIZER_NAME), TEXT_TOKENIZER_FILE][0]


def _named(config: Mapping[str, Any], key: str) -> list[str]:
    return [config[key]] if isinstance(config.get(key), str) else []


def _silent(line: str) -> None:
    """Small files: nothing worth a line is lost if a signal stops their download."""


def _list(repo: str, revision: str | None) -> hub.RepoFiles:
    from huggingface_hub.errors import HFValidationError

    try:
        if repo.count("/") != 1 or is_there(Path(repo)):  # not ORGANISATION/NAME, or a file
            raise HFValidationError
        return hub.list_files(repo, revision, (CONFIG_FILE, TEXT_TOKENIZER_FILE, *WEIGHTS_FILES))
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo} is neither a folder nor a repository name.\n"
            "Give a checkpoint's folder, a repository as ORGANISATION/NAME, or make one: pplex-export synth OUT"
        ) from error


def _needed(files: hub.RepoFiles, folder: Path | None, config: Mapping[str, Any]) -> list[str]:
    """The names of `wanted_files`. Raises CheckpointError if the repository, or the cache without a hub, lacks one."""
    index = _read_json(folder / INDEX_FILE) if folder else {}
    names = wanted_files(files.nbytes, config, index)
    missing = [name for name in names if name not in files.nbytes]
    if missing and files.unreachable is not None:
        raise CheckpointError(hub.advice(files.repo, files.revision, files.unreachable)) from files.unreachable
    if missing:
        has_weights = not set(missing).difference(_codec_and_tokenizer(config))
        raise CheckpointError(
            f"{files.repo} at revision {files.commit} is not a checkpoint of this model: it lacks {', '.join(missing)}.\n"
            + (missing_advice(files.nbytes, has_weights, "repository", adapter_advice(files.repo)) or _ADVICE)
        )
    return names


def adapter_advice(repo: str, name: str = ADAPTER_FILE) -> str:
    """How to build with the adapter of a repository: adapters are read from local files."""
    return f"its adapter:\n  hf download {repo} {name} {CONFIG_FILE} --local-dir adapter\n  --lora adapter/{name}"


def _read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object, {} if it does not exist. Raises CheckpointError if it is something else."""
    if not is_there(path):
        return {}
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}. Name another revision.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Name another revision.")
    return found
