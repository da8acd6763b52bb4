"""Asks the Hugging Face hub for a repository's files, and downloads them into its cache: called by `export.source`.

The hub's library reads its settings itself: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, and the proxy's variables.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pplex.export.background import all_in_background, in_background
from pplex.measure.tables import readable
from pplex.runtime.errors import CheckpointError

LOGIN = "log in (hf auth login, or set HF_TOKEN)"
_ANSWER_S = 10.0  # limit of one answer of the hub's API
_LONGEST_SENTENCE = 400  # characters of the hub's own words
Tell = Callable[[str], None]


@dataclass(frozen=True)
class RepoFiles:
    """The files of a repository at one commit, with their sizes in bytes.

    `unreachable`: the error of a hub that did not answer. The files are then those in the cache.
    """

    repo: str
    revision: str | None  # as the user gave it
    commit: str
    nbytes: Mapping[str, int]
    unreachable: Exception | None = None

    def uncached(self, names: Iterable[str]) -> dict[str, int]:
        """Those of `names` that the cache lacks, with their sizes in bytes."""
        return {name: self.nbytes[name] for name in names if _cached(self.repo, name, self.commit) is None}


def cache_folder() -> Path:
    """The folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def list_files(repo: str, revision: str | None, known: Iterable[str]) -> RepoFiles:
    """The files of `repo` at `revision` (a branch, tag or commit), from one request.

    If the hub cannot be asked, the files of the cache that holds one of the `known` names. Raises CheckpointError with
    advice if neither works, HFValidationError for an impossible name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    try:
        ask = partial(HfApi().model_info, repo, revision=revision, files_metadata=True, timeout=_ANSWER_S)
        info = in_background(ask)
    except HFValidationError:
        raise
    except Exception as error:  # the base class of the hub's errors depends on its version
        folder = None if isinstance(error, RevisionNotFoundError) else _cached_folder(repo, revision, known)
        if folder is None:
            raise CheckpointError(advice(repo, revision, error)) from error
        paths = (path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        return RepoFiles(repo, revision, folder.name, sizes, error)
    return RepoFiles(repo, revision, str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()})


def fetch_files(files: RepoFiles, names: Iterable[str], tell: Tell, *, by_name: bool = False) -> Path:
    """Download `names`, smallest first, unless the cache has them; returns the commit's folder in the cache.

    `by_name`: ask for the revision as the user named it, so that the cache remembers its commit for work offline.
    `tell` gets a line about what is kept if a signal stops the download. Raises CheckpointError with advice.
    """
    from huggingface_hub import hf_hub_download

    revision = files.revision if by_name else files.commit
    ordered = sorted(names, key=lambda name: files.nbytes[name])
    calls = [partial(hf_hub_download, files.repo, name, revision=revision) for name in ordered]
    try:
        paths = all_in_background(calls)
    except KeyboardInterrupt:
        tell(_stopped(files, ordered, _discard_partial_files()))
        raise
    except Exception as error:
        raise CheckpointError(advice(files.repo, files.revision, error)) from error
    return Path(paths[0]).parents[ordered[0].count("/")]


def check_access(repo: str, name: str, revision: str | None = None) -> None:
    """Ask the hub for the size of a file. A gated repository needs an accepted licence and a login.

    Raises CheckpointError, with advice, if the hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
    except Exception as error:
        raise CheckpointError(advice(repo, revision, error)) from error


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _cached_folder(repo: str, revision: str | None, known: Iterable[str]) -> Path | None:
    return next((path.parent for name in known if (path := _cached(repo, name, revision))), None)


def _discard_partial_files() -> int:
    """Delete the unfinished files that this process is writing; returns their bytes.

    The library names them at random and never reads them again. The open files of this process are ours for certain: other
    processes may be downloading the same repository.
    """
    nbytes = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            path = Path(os.readlink(link))
            if path.name.endswith(".incomplete") and cache_folder().resolve() in path.parents:
                nbytes += path.stat().st_size
                path.unlink()
    return nbytes


def _stopped(files: RepoFiles, names: list[str], discarded: int) -> str:
    missing = files.uncached(names)
    kept = f"{len(names) - len(missing)} of {len(names)} files are complete and stay in {cache_folder()}."
    lost = f"Not kept: {', '.join(missing)} ({readable(discarded)} had arrived), because the hub's library cannot "
    return f"The download has stopped. {kept}\n{lost}continue inside a file. Run the same command to fetch the rest."


def hub_sentence(error: BaseException) -> str:
    """The hub's own words about an error, " The hub says: ..."; empty if it gave none."""
    response = getattr(error, "response", None)
    words = getattr(error, "server_message", None) or (response is not None and response.headers.get("X-Error-Message"))
    text = " ".join(str(words or "").split())[:_LONGEST_SENTENCE]
    return f" The hub says: {text}" if text else ""


def advice(repo: str, revision: str | None, error: BaseException) -> str:
    """What is wrong with a download, in the hub's words if it gave any, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the hub's reason; the error itself only says that the cache is empty
    page, said = f"{constants.ENDPOINT}/{repo}", hub_sentence(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        access = f"Access to {repo} is restricted.{said}"
        licence = f"Accept its licence on {page}, then {LOGIN} and run this again."
        return f"{access}\n{licence} A fine-grained token also needs the right to read gated repositories."
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        missing = f"No folder {repo} here, and no repository of this name that your login can see.{said}"
        return f"{missing} Check {page}; if it is private, or your token has expired, {LOGIN}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision}. See its branches and commits on {page}/tree/main."
    return _not_downloaded(repo, error, said)


def _not_downloaded(repo: str, error: BaseException, said: str) -> str:
    from huggingface_hub import constants

    if isinstance(error, PermissionError) or getattr(error, "errno", None) is not None:  # of a file, not of the hub
        name = getattr(error, "filename", None) or cache_folder()
        reason = getattr(error, "strerror", None) or error
        return f"{name} cannot be written: {reason}.\nMake room, or name another folder for the hub's cache: HF_HOME=FOLDER"
    reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return (
        f"No folder {repo} here. The repository could not be downloaded from {constants.ENDPOINT}, and the cache has no "
        f"complete copy of it.\n{reason}{said}\n"
        "Check the connection (HF_ENDPOINT, HTTPS_PROXY), then run this again: complete files are kept."
    )
