"""Finds a checkpoint: a folder, or a Hugging Face repository downloaded into the hub's cache at one commit.

Called by the command line. The manifest records the result.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, REQUIRED_FILES
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import is_file, is_folder, is_there


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint's folder, and its repository and commit; both None for a folder that the user named."""

    folder: Path
    repo: str | None
    revision: str | None


def resolve(source: str | os.PathLike[str], revision: str | None = None) -> CheckpointSource:
    """The folder `source` if it exists, otherwise the repository of that name, downloaded at `revision`.

    `revision` is a branch, tag or commit. Files in the hub's cache are not downloaded again, and also work offline. Raises
    CheckpointError if neither exists, access is refused, or a needed file is missing or incomplete.
    """
    name = os.fspath(source)
    if name and is_folder(Path(name)):  # Path("") is the working folder
        if revision is not None:
            raise CheckpointError(
                f"{name} is a folder, so --revision {revision} does not apply. Leave it out, or name a repository."
            )
        return CheckpointSource(Path(name), None, None)
    folder = _fetch(name, revision)
    missing = [file for file in REQUIRED_FILES if not is_file(folder / file)]
    if missing:
        raise CheckpointError(
            f"{name} at revision {folder.name} is not a checkpoint of this model: it lacks {', '.join(missing)}.\n"
            "Name a repository with the files of nvidia/personaplex-7b-v1, or another revision."
        )
    return CheckpointSource(folder, name, folder.name)


def _fetch(repo: str, revision: str | None) -> Path:
    """The hub's cache folder for the current commit of `revision`; the folder's name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        if repo.count("/") != 1 or is_there(Path(repo)):  # not ORGANISATION/NAME, or a file
            raise HFValidationError
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[CONFIG_FILE, *REQUIRED_FILES]))
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo} is neither a folder nor a repository name.\n"
            "Give a checkpoint's folder, a repository as ORGANISATION/NAME, or make one: pplex-export synth OUT"
        ) from error
    except Exception as error:  # the base class of the hub's errors depends on its version
        raise CheckpointError(_advice(repo, revision, error)) from error


def check_access(repo: str, revision: str | None = None) -> None:
    """Ask the hub for the size of a repository's weights. A gated repository needs an accepted licence and a login.

    Raises CheckpointError, with advice, if the hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, LM_FILE, revision=revision))
    except Exception as error:
        raise CheckpointError(_advice(repo, revision, error)) from error


def _advice(repo: str, revision: str | None, error: BaseException) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the hub's reason; the error itself only says that the cache is empty
    page = f"{constants.ENDPOINT}/{repo}"
    login = "log in (hf auth login, or set HF_TOKEN)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        return f"Access to {repo} is restricted. Accept its licence on {page}, then {login} and run this again."
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        advice = f"Check {page}; if it is private, or your token has expired, {login}."
        return f"No folder {repo} here, and no repository of this name that your login can see. {advice}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision}. See its branches and commits on {page}/tree/main."
    reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return (
        f"No folder {repo} here. The repository could not be downloaded from {constants.ENDPOINT}, and the cache has no "
        f"complete copy of it.\n{reason}\n"
        "Check the connection and free disk space, then run this again: complete files are kept."
    )
