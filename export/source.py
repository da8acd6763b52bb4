"""Where a checkpoint comes from: a folder, or a Hugging Face repository fetched into the hub's cache at one commit.

Called by the command line; what it returns goes into the bundle's manifest.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, REQUIRED_FILES
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import is_file, is_folder, is_there


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint's folder, and the repository and commit it is a copy of; None for a folder the user named."""

    folder: Path
    repo: str | None
    revision: str | None


def resolve(source: str | os.PathLike[str], revision: str | None = None) -> CheckpointSource:
    """The folder `source` if there is one, else the repository of that name, fetched at `revision`.

    `revision` is a branch, tag or commit. Files already in the hub's cache are not fetched again, and serve when the
    hub cannot be reached. Raises CheckpointError where there is neither, access is refused, or a needed file is missing
    or was cut short.
    """
    name = os.fspath(source)
    if name and is_folder(Path(name)):  # Path("") is the working folder
        if revision is not None:
            raise CheckpointError(
                f"{name} is a folder and has no revision {revision}. Leave it out, or name a repository."
            )
        return CheckpointSource(Path(name), None, None)
    folder = _fetch(name, revision)
    missing = [file for file in REQUIRED_FILES if not is_file(folder / file)]
    if missing:
        raise CheckpointError(
            f"{name} at revision {folder.name} is no checkpoint of this model: it lacks {', '.join(missing)}.\n"
            "Name one in the layout of nvidia/personaplex-7b-v1, or another revision of it."
        )
    return CheckpointSource(folder, name, folder.name)


def _fetch(repo: str, revision: str | None) -> Path:
    """The hub's own folder for the commit that `revision` names now, which it is called after."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        if repo.count("/") != 1 or is_there(Path(repo)):  # other names are none of this model's, or a file's
            raise HFValidationError
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[CONFIG_FILE, *REQUIRED_FILES]))
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo} is neither a folder nor the name of a repository.\n"
            "Give a checkpoint's folder, a repository as ORGANISATION/NAME, or make one: pplex-export synth OUT"
        ) from error
    except Exception as error:  # the hub's HTTP library, and so its errors' base class, differs from version to version
        raise CheckpointError(_advice(repo, revision, error)) from error


def check_access(repo: str, revision: str | None = None) -> None:
    """Ask the hub for the size of a repository's weights, which takes its licence and a login where it is gated.

    Raises CheckpointError, with what to do, where the hub would not give them.
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
        error = error.__cause__  # why the hub gave nothing; the error itself says that the cache has nothing either
    page = f"{constants.ENDPOINT}/{repo}"
    login = "log in (hf auth login, or set HF_TOKEN)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        return f"Access to {repo} is restricted. Accept its licence on {page}, then {login} and run this again."
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        advice = f"Check {page}; if it is private, or your token has expired, {login}."
        return f"There is no folder {repo}, and no repository of that name that you may see. {advice}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision}. Its branches and commits are listed on {page}/tree/main."
    reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return (
        f"There is no folder {repo} here. As a repository it could not be fetched from {constants.ENDPOINT}, and the "
        f"cache holds no whole copy of it.\n{reason}\n"
        "Check the connection and the disk's free space, and run this again: files fetched whole are kept."
    )
