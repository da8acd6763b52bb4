"""Reads a checkpoint's voices, which are pickles, without running their code, and writes them as safetensors.

A checkpoint has its voices in an archive, in a folder, in both, or has none. Called by `export.build` and `validate`; the
runtime reads the result with numpy.
"""

import gzip
import io
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pplex.export.layout import VOICES_FILE, VOICES_FOLDER
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import is_file, is_folder
from pplex.runtime.voice_file import Voice, name_problem, voices_bytes

MAX_UNPACKED_NBYTES = 1 << 30  # the released voices take a few megabytes each
MAX_MEMBERS = 1000
MAX_VOICE_FRAMES = 7500  # ten minutes, several times what the released model remembers
SUFFIX = ".pt"

_ADVICE = "Download the checkpoint again from its publisher."

# A file's name for messages, and a function that returns a voice's name and pickle. It returns None for another file, and
# raises _Unfit.
_Entry = tuple[str, Callable[[], tuple[str, bytes] | None]]


class _Unfit(Exception):
    """The reason why a voice cannot be used. Reasons are collected and reported together."""


@dataclass(frozen=True)
class FoundVoices:
    """Voices by name, in alphabetical order, and a line for each voice that cannot be used: its file, and why."""

    voices: dict[str, Voice]
    warnings: list[str]


def find_voices(folder: Path, config: ModelConfig) -> FoundVoices:
    """The voices of the checkpoint in `folder`: in voices.tgz, in the folder voices, or in both; it may have neither.

    If both have a voice of the same name, the folder's is used. A voice that cannot be used is left out with a warning. A
    voice's pickle NAME.pt holds `embeddings` [T, 1, 1, dim], any float type, and `cache` [1, 17, 4], any integer type; other
    keys are ignored. Raises CheckpointError if no voice can be used, or if the archive cannot be read: see `read_voices`.
    """
    archive = _archived(folder / VOICES_FILE, config) if is_file(folder / VOICES_FILE) else FoundVoices({}, [])
    loose = (
        _usable(_loose(folder / VOICES_FOLDER), config) if is_folder(folder / VOICES_FOLDER) else FoundVoices({}, [])
    )
    found = FoundVoices(_by_name({**archive.voices, **loose.voices}), archive.warnings + loose.warnings)
    if found.warnings and not found.voices:
        raise _none_usable(folder, found.warnings)
    return found


def read_voices(
    source: Path, config: ModelConfig, max_nbytes: int = MAX_UNPACKED_NBYTES, max_members: int = MAX_MEMBERS
) -> dict[str, Voice]:
    """The voices of a checkpoint's folder as in `find_voices`, or of one archive; those that cannot be used are left out.

    Members of the archive are read one by one in memory and nothing is written, so their paths can do no harm. Raises
    CheckpointError if it has no usable voice, is damaged, or unpacks to more than the limits.
    """
    if is_folder(source):
        return find_voices(source, config).voices
    found = _archived(source, config, max_nbytes, max_members)
    if found.warnings and not found.voices:
        raise _none_usable(source, found.warnings)
    return found.voices


def _archived(
    tgz: Path, config: ModelConfig, max_nbytes: int = MAX_UNPACKED_NBYTES, max_members: int = MAX_MEMBERS
) -> FoundVoices:
    members = _members(tgz, max_nbytes, max_members)
    found = _usable(
        ((f"{tgz.name}: {member.name}", partial(_packed, member, data)) for member, data in members), config
    )
    if not found.voices and not found.warnings:
        raise CheckpointError(f"{tgz} holds no voice (no file NAME{SUFFIX}). {_ADVICE}")
    return found


def _loose(folder: Path) -> Iterator[_Entry]:
    for path in sorted(folder.iterdir()):
        yield f"{folder.name}/{path.name}", partial(_on_disk, path)


def _usable(entries: Iterable[_Entry], config: ModelConfig) -> FoundVoices:
    voices: dict[str, Voice] = {}
    problems: list[str] = []
    for file, read in entries:
        try:
            entry = read()
            if entry is None:
                continue
            name, data = entry
            if name in voices:
                raise _Unfit(f"another voice is also named {name}")
            voices[name] = _voice(data, config)
        except _Unfit as problem:
            problems.append(f"{file}: {problem}")
    return FoundVoices(_by_name(voices), problems)


def _by_name(voices: Mapping[str, Voice]) -> dict[str, Voice]:
    return dict(sorted(voices.items()))


def _none_usable(source: Path, problems: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{source} holds only voices that cannot be used:\n  " + "\n  ".join(problems) + f"\n{_ADVICE}"
    )


def write_voices(voices: Mapping[str, Voice], path: Path) -> None:
    """Write `voices` as a bundle has them: see `voices_bytes`."""
    path.write_bytes(voices_bytes(voices, {}))  # not save_file, whose file only its owner can read


class _Limited(io.BufferedIOBase):
    """A stream that ends with an error after `limit` bytes, whatever the archive's headers say."""

    def __init__(self, file: gzip.GzipFile, limit: int):
        self._file, self._left = file, limit

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _TooLarge
        return data


class _TooLarge(Exception):
    pass


def _members(tgz: Path, max_nbytes: int, max_members: int) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every member and its contents, in the archive's order."""
    try:
        with gzip.open(tgz) as file:
            stream = _Limited(file, max_nbytes)
            # "r|" never seeks: each byte is unpacked once and counts towards the limit.
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for count, member in enumerate(archive, start=1):
                    if count > max_members or member.size > max_nbytes:
                        raise _TooLarge
                    part = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                    yield member, b"" if part is None else part.read()
            while stream.read(1 << 20):  # to the end of the file, which holds the checksum
                pass
    except _TooLarge as error:
        limits = f"{max_nbytes / 1e9:.3g} GB or {max_members} files"
        raise CheckpointError(f"{tgz} unpacks to more than {limits}, too much for voices. {_ADVICE}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"The voices are missing: {tgz} does not exist. {_ADVICE}") from error
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:  # ValueError: numbers in headers
        raise CheckpointError(f"{tgz} is damaged or not a tar.gz: {error}. {_ADVICE}") from error


def _packed(member: tarfile.TarInfo, data: bytes) -> tuple[str, bytes] | None:
    """A voice `voices/NAME.pt` of an archive; None for a folder or another kind of file. Refuses suspicious members."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _Unfit("its path leads out of the archive")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise _Unfit("it is a link or a device, not a file")
    name = _voice_name(path)
    return None if name is None else (name, data)


def _on_disk(path: Path) -> tuple[str, bytes] | None:
    """A voice NAME.pt of a folder; None for a folder or another kind of file. Links are followed: a hub's cache has them."""
    name = _voice_name(path)
    if name is None or path.is_dir():
        return None
    try:
        if not path.is_file():
            raise _Unfit("it is a device, or a link to a file that does not exist")
        if path.stat().st_size > MAX_UNPACKED_NBYTES:
            raise _Unfit(f"it has {path.stat().st_size / 1e9:.1f} GB, too much for a voice")
        return name, path.read_bytes()
    except OSError as error:
        raise _Unfit(f"it cannot be read: {error.strerror}") from error


def _voice_name(path: PurePath) -> str | None:
    """NAME of a file NAME.pt, None for another file."""
    if path.suffix != SUFFIX or path.name.startswith("."):  # macOS packs a hidden ._NAME.pt beside each file
        return None
    if problem := name_problem(path.stem):
        raise _Unfit(problem)
    return path.stem


def _voice(data: bytes, config: ModelConfig) -> Voice:
    state = _unpickled(data)
    keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
    if not isinstance(state, dict) or not {"embeddings", "cache"} <= state.keys():
        raise _Unfit(f"expected the keys embeddings and cache, found {keys}")
    embeddings, cache = _plain(state["embeddings"], "embeddings"), _plain(state["cache"], "cache")
    problems = _embeddings_problems(embeddings, config) + _cache_problems(cache, config)
    if problems:
        raise _Unfit("; ".join(problems))
    return Voice(
        embeddings.reshape(-1, config.temporal.dim).to(torch.float32, copy=True).contiguous().numpy(),
        cache[0].to(torch.int64, copy=True).contiguous().numpy(),
    )


def _unpickled(data: bytes) -> Any:
    """Load a file of torch.save that holds tensors and containers only. Code in a pickle is refused, not run."""
    try:
        _refuse_compressed(data)
        with warnings.catch_warnings(action="ignore"):  # about other pickle protocols; unreadable files are reported
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _Unfit:
        raise
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"calls {called[1]}" if called else "is damaged or holds something other than tensors"
        raise _Unfit(f"its pickle {what}; it was refused, not run") from error
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        reason = str(error).partition(". ")[0]
        raise _Unfit(f"it is damaged ({type(error).__name__}: {reason})") from error


def _refuse_compressed(data: bytes) -> None:
    """torch.save writes uncompressed zip archives; a compressed one could unpack to any size."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise _Unfit("it is compressed, which torch.save does not do")


def _plain(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        raise _Unfit(f"{name} is not a plain tensor")
    return value.detach()


def _embeddings_problems(embeddings: Tensor, config: ModelConfig) -> list[str]:
    frames, shape = embeddings.shape[:1].numel(), tuple(embeddings.shape)
    if not embeddings.is_floating_point() or shape != (frames, 1, 1, config.temporal.dim):
        return [f"embeddings are {_kind(embeddings)}, expected floats [T, 1, 1, {config.temporal.dim}]"]
    if not 1 <= frames <= MAX_VOICE_FRAMES:
        return [f"it lasts {frames} frames, expected 1 to {MAX_VOICE_FRAMES}"]
    wrong = int((~torch.isfinite(embeddings.float())).sum())
    return [f"{wrong} of its embeddings' numbers are NaN or infinite"] if wrong else []


def _cache_problems(cache: Tensor, config: ModelConfig) -> list[str]:
    """A token may be -1 (no token: zeros for the model) or the initial token, which is the last token plus one."""
    expected = (1, config.num_streams, config.max_delay + 3)
    if cache.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8) or tuple(cache.shape) != expected:
        return [f"cache is {_kind(cache)}, expected integers {list(expected)}"]
    highest = torch.tensor(config.initial_tokens)[:, None]  # [K, 1]
    tokens = cache[0].long()
    wrong = ((tokens < -1) | (tokens > highest)).any(dim=1).nonzero().flatten().tolist()
    return [f"cache holds {tokens[k].tolist()} for stream {k}, expected -1 to {int(highest[k])}" for k in wrong]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
