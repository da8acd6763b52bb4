"""Reads a checkpoint's voices.tgz, an archive of pickles, without running their code, and writes them as safetensors.

Called by `export.build` and `validate`; the runtime reads the result with numpy.
"""

import gzip
import io
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.numpy import save
from torch import Tensor

from pplex.runtime.bundle import Voice
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import CheckpointError

MAX_UNPACKED_NBYTES = 1 << 30  # the released voices take a few megabytes each
MAX_MEMBERS = 1000
MAX_VOICE_FRAMES = 7500  # ten minutes, several times what the released model remembers
SUFFIX = ".pt"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_ADVICE = "Download the checkpoint again from its publisher."


class _Unfit(Exception):
    """The reason why a voice cannot be used. Reasons are collected and reported together."""


def read_voices(
    tgz: Path, config: ModelConfig, max_nbytes: int = MAX_UNPACKED_NBYTES, max_members: int = MAX_MEMBERS
) -> dict[str, Voice]:
    """Every `NAME.pt` of the archive, by NAME in alphabetical order; other files in it are ignored.

    A voice's pickle holds `embeddings` [T, 1, 1, dim], any float type, and `cache` [1, 17, 4], any integer type; other
    keys are ignored. Members are read one by one in memory and nothing is written, so their paths can do no harm.
    Raises CheckpointError that names every unusable member, or if the archive unpacks to more than the limits.
    """
    voices: dict[str, Voice] = {}
    problems: list[str] = []
    for member, data in _members(tgz, max_nbytes, max_members):
        try:
            name = _voice_name(member)
            if name is None:
                continue
            if name in voices:
                raise _Unfit(f"another voice is also named {name}")
            voices[name] = _voice(data, config)
        except _Unfit as problem:
            problems.append(f"{member.name}: {problem}")
    if problems:
        raise CheckpointError(f"{tgz} holds voices that cannot be used:\n  " + "\n  ".join(problems) + f"\n{_ADVICE}")
    if not voices:
        raise CheckpointError(f"{tgz} holds no voice (no file NAME{SUFFIX}). {_ADVICE}")
    return dict(sorted(voices.items()))


def write_voices(voices: Mapping[str, Voice], path: Path) -> None:
    """Write `voices` as safetensors, under the keys "NAME.embeddings" and "NAME.cache"."""
    tensors = {
        f"{name}.{part}": getattr(voice, part) for name, voice in voices.items() for part in ("embeddings", "cache")
    }
    path.write_bytes(save(tensors))  # not save_file, whose file only its owner can read


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


def _voice_name(member: tarfile.TarInfo) -> str | None:
    """NAME of `voices/NAME.pt`, None for a folder or another kind of file. Raises _Unfit for a suspicious member."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _Unfit("its path leads out of the archive")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise _Unfit("it is a link or a device, not a file")
    if path.suffix != SUFFIX or path.name.startswith("."):  # macOS packs a hidden ._NAME.pt beside each file
        return None
    if not _NAME.fullmatch(path.stem):
        raise _Unfit("a voice's name may contain letters, digits, _, - and . only")
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
