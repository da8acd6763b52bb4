"""Checks of the checkpoint for a build: a folder, or the hub with its login and the licence of the gated repository."""

from collections.abc import Iterator
from pathlib import Path

from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.machine import RELEASED
from pplex.doctor.probe import Probe, probe

_FOLDER = """
from pathlib import Path
from pplex.export.checkpoint import open_checkpoint
found = open_checkpoint(Path(arguments[0])).depth_sets
"""
_CACHE = """
from huggingface_hub import constants, try_to_load_from_cache
from pplex.export.layout import WEIGHTS_FILES
found = {name for name in WEIGHTS_FILES if isinstance(try_to_load_from_cache(arguments[0], name), str)}
whole = any(name.endswith(".safetensors") for name in found)
found = {"folder": constants.HF_HUB_CACHE, "whole": whole}
"""
_HUB = """
from huggingface_hub import constants, get_token
from pplex.export.source import check_access
from pplex.runtime.errors import CheckpointError
found = {"endpoint": constants.ENDPOINT, "login": get_token() is not None, "refused": None}
try:
    check_access(arguments[0])
except CheckpointError as error:
    found["refused"] = str(error)
"""
_OURS = "CheckpointError: ", "ConfigError: "


def hub_cache(question: Question) -> Path | None:
    """The cache folder for files that a build would download from the hub; None if it downloads nothing."""
    if "build" not in question.aims or (question.checkpoint and Path(question.checkpoint).is_dir()):
        return None
    answer = probe(_CACHE, question.checkpoint or RELEASED)
    if answer.error:
        return Path("~/.cache/huggingface/hub").expanduser()
    return None if answer.value["whole"] else Path(answer.value["folder"])


def check_checkpoint(question: Question) -> Iterator[Finding]:
    """Check a folder's files and tensors. For a repository, only say that a build would ask the hub."""
    source = question.checkpoint
    if source is None or not _is_folder(source):
        name = source or RELEASED
        if name.count("/") != 1 or Path(name).exists():
            advice = "Give a checkpoint's folder, or a repository as ORGANISATION/NAME."
            yield Finding(
                "checkpoint", PROBLEM, f"{name} is neither a folder nor a repository name.", advice, ("build",)
            )
            return
        if not question.hub:
            advice = f"To check licence and login: pplex-export doctor build {name} --hub"
            yield Finding(
                "checkpoint", OK, f"A build would download {name} from the hub. The hub was not asked.", advice
            )
        return
    answer = probe(_FOLDER, source)
    if answer.error is None:
        yield Finding("checkpoint", OK, f"{source} has every file and tensor.", details={"depth_sets": answer.value})
    elif answer.error.startswith(_OURS):
        fact, _, advice = answer.error.partition(": ")[2].partition("\n")
        yield Finding("checkpoint", PROBLEM, fact, advice or "Copy it again.", ("build",))
    elif answer.missing or "ImportError" in answer.error:
        yield Finding(
            "checkpoint", WARNING, f"{source} cannot be read yet: {answer.error}", "Repair the packages first."
        )
    else:
        advice = "Give this user permission to read it, or copy it again."
        yield Finding("checkpoint", PROBLEM, f"{source} cannot be read: {answer.error}", advice, ("build",))


def check_hub(question: Question) -> Iterator[Finding]:
    """Check the login, and whether the hub gives it the repository's weights. Sends two requests."""
    name = question.checkpoint or RELEASED
    if not question.hub or _is_folder(name):
        return
    answer: Probe = probe(_HUB, name)
    if answer.error:
        yield Finding(
            "hub", PROBLEM, f"The hub cannot be asked: {answer.error}", "Repair the packages first.", ("build",)
        )
        return
    login = "A login is set" if answer.value["login"] else "No login is set"
    if answer.value["refused"]:
        fact, advice = _cut(answer.value["refused"])
        yield Finding("hub", PROBLEM, f"{login}. {fact}", advice, ("build",), answer.value)
    else:
        fact = f"{login}, and {answer.value['endpoint']} gives the weights of {name}."
        yield Finding("hub", OK, fact, details=answer.value)


def _cut(message: str) -> tuple[str, str]:
    """Split a message of ours into fact and advice. Advice is the last line, or everything after the first sentence."""
    fact, _, advice = message.rpartition("\n")
    if not fact:
        fact, _, advice = message.partition(". ")
        fact = f"{fact}."
    return fact, advice


def _is_folder(source: str) -> bool:
    try:
        return Path(source).is_dir()
    except OSError:
        return True
