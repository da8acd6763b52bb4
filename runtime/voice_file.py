"""The voices of a bundle in one safetensors file, and the rules for their names.

Called by `runtime.bundle`, `runtime.voice_changes` and `export.voices`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from pplex.runtime.arrays import Array, Tokens

CHECKPOINT = "checkpoint"  # the source of the voices that a build copies
VOICES_FILE = "voices.safetensors"  # of a new bundle; a change of its voices writes a file of another name
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_FILE_NAME = re.compile(r"voices(-[0-9a-f]+)?\.safetensors")
_SOURCES = "sources"  # the key in the file's metadata: JSON, a voice's name -> the file name of its recording
_OTHER_MEANINGS = ("none", ".pt", ".wav", ".flac", ".ogg")  # of --voice: without a voice, a released name, a recording


@dataclass(frozen=True)
class Voice:
    """A recorded voice prompt: embeddings [T, dim] float32, and the token ring [17, 4] int64 to continue from."""

    embeddings: npt.NDArray[np.float32]
    cache: npt.NDArray[np.int64]


AnyVoice = Voice | Tokens  # a voice of the checkpoint, or the codes [F, 8] int64 of a recording


def name_problem(name: str) -> str | None:
    """The reason why a voice cannot have this name, None if it can."""
    if not _NAME.fullmatch(name):
        return "a voice's name may contain letters, digits, _, - and . only, and its first character is not ."
    if name.lower().endswith(_OTHER_MEANINGS[1:]):
        return f"a voice's name does not end with {', '.join(_OTHER_MEANINGS[1:])}: that names a file"
    if name.lower() == _OTHER_MEANINGS[0]:
        return f"{_OTHER_MEANINGS[0]} means a conversation without a voice"
    return None


def default_voice(voices: Iterable[str], preferred: str) -> str | None:
    """The voice of a conversation that names none: `preferred` or else the first of `voices`; None if there are none."""
    names = list(voices)
    return preferred if preferred in names else next(iter(names), None)


def voice_steps(voice: AnyVoice) -> int:
    """Steps of the temporal transformer that a voice takes, one for each frame."""
    return len(voice.embeddings) if isinstance(voice, Voice) else len(voice)


def is_voices_file(name: str) -> bool:
    """Whether a file of a bundle holds voices: it has this form of name in every bundle."""
    return _FILE_NAME.fullmatch(name) is not None


def voices_file(files: Iterable[str]) -> str | None:
    """The one of a manifest's `files` with the voices; None for a bundle without such a file."""
    return next(filter(is_voices_file, files), None)


def voices_bytes(voices: Mapping[str, AnyVoice], sources: Mapping[str, str]) -> bytes:
    """`voices` as safetensors: "NAME.embeddings" and "NAME.cache", or "NAME.codes" for the codes of a recording.

    `sources` has the file name of each recording. The bytes do not depend on the order of the voices.
    """
    tensors: dict[str, Array] = {}
    for name, voice in voices.items():
        parts: dict[str, Array] = (
            {"embeddings": voice.embeddings, "cache": voice.cache} if isinstance(voice, Voice) else {"codes": voice}
        )
        tensors |= {f"{name}.{part}": array for part, array in parts.items()}
    return save(tensors, {_SOURCES: json.dumps(dict(sources), sort_keys=True)} if sources else None)


def read_voices_file(path: Path, names: Iterable[str]) -> tuple[dict[str, AnyVoice], dict[str, str]]:
    """The voices with these names, and the sources of those that are recordings."""
    with safe_open(path, framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        sources = json.loads((file.metadata() or {}).get(_SOURCES, "{}"))
    voices: dict[str, AnyVoice] = {}
    for name in names:
        codes = tensors.get(f"{name}.codes")
        voices[name] = codes if codes is not None else Voice(tensors[f"{name}.embeddings"], tensors[f"{name}.cache"])
    return voices, sources
