"""Uploads a bundle to the Hugging Face hub, with a model card: called by `cli.hub`.

The repository gets all files in one commit, so it never holds a part of a bundle.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pplex.export.background import in_background
from pplex.export.card import licence_of, model_card, recorded_voices
from pplex.export.hub import LOGIN, Tell, hub_sentence
from pplex.export.staging import is_partial_folder
from pplex.measure.tables import readable
from pplex.runtime.bundle import MANIFEST_FILE, Bundle, open_bundle, parity_text
from pplex.runtime.errors import BundleError, OutputError
from pplex.runtime.voice_checks import CONSENT

CARD_FILE, NOTICE_FILE = "README.md", "Notice"
_OF_ANY_REPO = {CARD_FILE, ".gitattributes", ".gitignore", "LICENSE", NOTICE_FILE}
_AGAIN = "Run the same command to continue: files that arrived whole are not sent again."
_ANSWER_S = 30.0  # limit of one answer of the hub's API
Result = TypeVar("Result")


def push(folder: Path, repo: str, public: bool, tell: Tell) -> str:
    """Upload the bundle in `folder` to the repository `repo`; returns the address of its page.

    A new repository is private unless `public`. Files that the hub has already are not sent again. Raises BundleError for
    an incomplete or damaged bundle, OutputError with advice if the hub refuses.
    """
    from huggingface_hub import HfApi, constants

    _check_name(repo)
    tell(f"Checking {folder}")
    bundle = _complete_bundle(folder)
    tell(f"{parity_text(bundle.manifest['parity'])}. The model card says so.")
    if names := recorded_voices(bundle):
        tell(
            f"Whoever gets the bundle gets these voices, which were added from recordings: {', '.join(names)}. {CONSENT}"
        )
    api = HfApi()
    try:
        info = _look(api, repo)
        _check_repo(repo, info, public)
        if info is None:
            _ask(repo, partial(api.create_repo, repo, private=not public))
        _upload(api, repo, info, bundle, tell)
    except KeyboardInterrupt:
        tell(f"The upload has stopped. {repo} never holds a part of a bundle. {_AGAIN}")
        raise
    if public and info is not None and info.private:
        tell(f"{repo} was private and stays private. To change that: {constants.ENDPOINT}/{repo}/settings")
    if licence_of(bundle.manifest).notice:
        tell(f"Before you share it, its licence asks for a copy of the licence: hf upload {repo} LICENSE")
    return f"{constants.ENDPOINT}/{repo}"


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OutputError(f"{repo} is not a repository's name. Give one as YOU/NAME or ORGANISATION/NAME.") from error


def _complete_bundle(folder: Path) -> Bundle:
    """The bundle with every file's SHA-256 checked. Raises BundleError if it is damaged, or its build has not ended."""
    if is_partial_folder(folder):
        raise BundleError(f"{folder} is an unfinished build. Run the command again that makes it: pplex-export build")
    return open_bundle(folder)


def _look(api: Any, repo: str) -> Any:
    """What the hub knows of a repository, None if it does not exist or this login cannot see it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return in_background(partial(api.model_info, repo, timeout=_ANSWER_S))
    except RepositoryNotFoundError:
        return None
    except Exception as error:
        raise OutputError(_advice(repo, error)) from error


def _check_repo(repo: str, info: Any, public: bool) -> None:
    """Raise OutputError for a repository that is public by surprise, or holds something else than a bundle."""
    if info is None:
        return
    if not info.private and not public:
        raise OutputError(f"{repo} is public. Add --public to push there, or name another repository.")
    names = {file.rfilename for file in info.siblings or ()}
    if names - _OF_ANY_REPO and MANIFEST_FILE not in names:
        others = ", ".join(sorted(names - _OF_ANY_REPO)[:3])
        raise OutputError(f"{repo} holds something else than a bundle ({others}). Name a new repository.")


def _upload(api: Any, repo: str, info: Any, bundle: Bundle, tell: Tell) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    names = [*bundle.manifest["files"], MANIFEST_FILE]
    sizes = {name: bundle.path(name).stat().st_size for name in names}
    tell(f"Uploading {len(names)} files, {readable(sum(sizes.values()))}")
    contents: dict[str, str | bytes] = {name: str(bundle.path(name)) for name in names}
    contents[CARD_FILE] = model_card(bundle, repo).encode()
    notice = licence_of(bundle.manifest).notice
    if notice:
        contents[NOTICE_FILE] = f"{notice}\n".encode()
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in contents.items()]
    operations += [CommitOperationDelete(name) for name in _left_over(repo, info) - contents.keys()]
    message = f"Bundle by {bundle.manifest['made_by']}"
    parent = None if info is None else info.sha  # another upload in the meantime is an error, not a mixture
    _ask(repo, partial(api.create_commit, repo, operations, commit_message=message, parent_commit=parent))


def _left_over(repo: str, info: Any) -> set[str]:
    """The files of the bundle that the repository holds now. Files of other people's making are not among them."""
    from huggingface_hub import hf_hub_download

    names = set() if info is None else {file.rfilename for file in info.siblings or ()}
    if MANIFEST_FILE not in names:
        return set()
    with tempfile.TemporaryDirectory(prefix="pplex-") as folder:
        fetch = partial(hf_hub_download, repo, MANIFEST_FILE, revision=info.sha, local_dir=folder)
        try:
            return names & set(json.loads(Path(_ask(repo, fetch)).read_text())["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{MANIFEST_FILE} of {repo} is not a bundle's. Name a new repository.") from error


def _ask(repo: str, call: Callable[[], Result]) -> Result:
    try:
        return in_background(call)
    except Exception as error:
        raise OutputError(_advice(repo, error)) from error


def _advice(repo: str, error: BaseException) -> str:
    """What is wrong with an upload, in the hub's words if it gave any, and what to do."""
    from huggingface_hub import constants

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the library names the file, its cause the reason
    status, said = getattr(getattr(error, "response", None), "status_code", None), hub_sentence(error)
    if status == 401:
        return f"The hub does not know this login.{said}\nTo upload, {LOGIN}. The token needs the right to write."
    if status in (403, 404):
        return (
            f"This login may not write to {repo}.{said}\n"
            "Use a token with the right to write (hf auth login), or name a repository of your own: YOU/NAME"
        )
    reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return (
        f"The bundle could not be uploaded to {repo} on {constants.ENDPOINT}.\n{reason}{said}\n"
        f"Check the connection. {_AGAIN}"
    )
