"""What a build starts from: a checkpoint's folder, or the hub with its login and the licence of the gated repository."""

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
from pplex.export.checkpoint import LM_FILE
found = {"folder": constants.HF_HUB_CACHE, "whole": isinstance(try_to_load_from_cache(arguments[0], LM_FILE), str)}
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
    """Where the hub's files go that a build would fetch; None where it needs none, or has them."""
    if "build" not in question.aims or (question.checkpoint and Path(question.checkpoint).is_dir()):
        return None
    told = probe(_CACHE, question.checkpoint or RELEASED)
    if told.error:
        return Path("~/.cache/huggingface/hub").expanduser()
    return None if told.value["whole"] else Path(told.value["folder"])


def check_checkpoint(question: Question) -> Iterator[Finding]:
    """A folder's files and tensors; of the hub only, without asking it, that it will be asked."""
    source = question.checkpoint
    if source is None or not _is_folder(source):
        name = source or RELEASED
        if not question.hub:
            advice = f"To ask for its licence and your login: pplex-export doctor build {name} --hub"
            yield Finding("checkpoint", OK, f"{name} would come from the hub, which was not asked.", advice)
        return
    told = probe(_FOLDER, source)
    if told.error is None:
        yield Finding("checkpoint", OK, f"{source} has every file and tensor.", details={"depth_sets": told.value})
    elif told.error.startswith(_OURS):
        fact, _, advice = told.error.partition(": ")[2].partition("\n")
        yield Finding("checkpoint", PROBLEM, fact, advice or "Copy it again.", ("build",))
    elif told.missing or "ImportError" in told.error:
        yield Finding("checkpoint", WARNING, f"{source} cannot be read yet: {told.error}", "First mend the packages.")
    else:
        advice = "Let this user read it, or copy it again."
        yield Finding("checkpoint", PROBLEM, f"{source} cannot be read: {told.error}", advice, ("build",))


def check_hub(question: Question) -> Iterator[Finding]:
    """Login, and whether the hub would give the repository's weights to it. Sends one request."""
    name = question.checkpoint or RELEASED
    if not question.hub or _is_folder(name):
        return
    told: Probe = probe(_HUB, name)
    if told.error:
        yield Finding("hub", PROBLEM, f"The hub cannot be asked: {told.error}", "First mend the packages.", ("build",))
        return
    login = "A login is set" if told.value["login"] else "No login is set"
    if told.value["refused"]:
        fact, advice = _cut(told.value["refused"])
        yield Finding("hub", PROBLEM, f"{login}. {fact}", advice, ("build",), told.value)
    else:
        fact = f"{login}, and {told.value['endpoint']} gives the weights of {name}."
        yield Finding("hub", OK, fact, details=told.value)


def _cut(message: str) -> tuple[str, str]:
    """A message of ours as fact and advice: the advice is its last line, or all after its first sentence."""
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
