"""The files of a checkpoint's folder: which hold the weights, the codec, the tokenizer and the voices. Called by
`export.checkpoint`; other modules read the names.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pplex.runtime.config_file import CODEC_NAME, CONFIG_FILE, TOKENIZER_NAME, WEIGHTS_NAME
from pplex.runtime.errors import CheckpointError
from pplex.runtime.files import check_readable, files_below, is_file, read_text

LM_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONSOLIDATED_FILE = "consolidated.safetensors"
Q8_FILE = "model.q8.safetensors"
WEIGHTS_FILES = (LM_FILE, INDEX_FILE, CONSOLIDATED_FILE, Q8_FILE)  # the first of these that exists is used
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TEXT_TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
VOICES_FILE = "voices.tgz"
VOICES_FOLDER = "voices"
ADAPTER_FILE = "lora.safetensors"
REQUIRED_FILES = (LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE, VOICES_FILE)  # of the released repository

_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_LIBRARIES = (".gguf", ".npz", ".mlx")
_ADVICE = (
    "Name a folder with the files of nvidia/personaplex-7b-v1, a hub repository, or make one: pplex-export synth OUT"
)


@dataclass(frozen=True)
class Layout:
    """A checkpoint's files.

    weights: the files of the language model. index: the file that lists them, if they are shards.
    unused: other files of weights, which are not read.
    """

    folder: Path
    weights: tuple[Path, ...]
    index: Path | None
    codec: Path
    tokenizer: Path
    voices: tuple[Path, ...]
    unused: tuple[str, ...]

    @property
    def weights_name(self) -> str:
        """The file that stands for the language model in messages."""
        return self.name(self.index or self.weights[0])

    @property
    def files(self) -> dict[str, Path]:
        """The files by their names in the folder, those of the language model first."""
        index = () if self.index is None else (self.index,)
        return {self.name(path): path for path in (*self.weights, *index, self.codec, self.tokenizer, *self.voices)}

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


NO_FILES = Layout(Path(), (), None, Path(), Path(), (), ())  # of a checkpoint in memory


def find_layout(folder: Path, names: Mapping[str, str]) -> Layout:
    """The files in `folder`; `names` are those of config.json, by its keys.

    Raises CheckpointError that names all missing files, AccessError that names all unreadable ones.
    """
    wanted = [names[WEIGHTS_NAME]] if WEIGHTS_NAME in names else list(WEIGHTS_FILES)
    found = [name for name in wanted if is_file(folder / name)]
    codec, tokenizer = names.get(CODEC_NAME, MIMI_FILE), names.get(TOKENIZER_NAME, TEXT_TOKENIZER_FILE)
    missing = [] if found else [wanted[0]]
    missing += [name for name in (codec, tokenizer) if not is_file(folder / name)]
    if missing:
        names_here = [path.name for path in folder.glob("*")]
        advice = missing_advice(names_here, bool(found), "folder", f"--lora {folder / ADAPTER_FILE}") or _ADVICE
        raise CheckpointError(f"{folder} is not a checkpoint: it lacks {', '.join(missing)}.\n{advice}")
    for name, suffixes in ((found[0], (_SUFFIX, _INDEX_SUFFIX)), (codec, (_SUFFIX,))):
        if not name.endswith(suffixes):
            raise CheckpointError(
                f"{CONFIG_FILE} in {folder} names {name} for weights, and only safetensors files are read.\n"
                "Convert it with safetensors.torch.save_file, or name another file."
            )
    index = folder / found[0] if found[0].endswith(_INDEX_SUFFIX) else None
    weights = (folder / found[0],) if index is None else _shards(index)
    present = {name for name in WEIGHTS_FILES if is_file(folder / name)} - {found[0]}
    layout = Layout(folder, weights, index, folder / codec, folder / tokenizer, _voices(folder), tuple(sorted(present)))
    check_readable(*layout.files.values())
    return layout


def read_weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor. Raises CheckpointError if the index cannot be used, or names a tensor twice."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        shards = json.loads(read_text(index), object_pairs_hook=unique)["weight_map"]
        wrong = [*_shard_problems(shards), *(f"{key} is in it twice" for key in twice)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        wrong = [f"it has no readable weight_map ({type(error).__name__}: {error})"]
    if wrong:
        raise CheckpointError(f"{index} cannot be used:\n  " + "\n  ".join(wrong) + "\nDownload or copy it again.")
    return dict(shards)


def _shard_problems(shards: Mapping[str, object]) -> Iterator[str]:
    if not shards:
        yield "its weight_map is empty"
    for name in dict.fromkeys(shards.values()):
        if not isinstance(name, str) or PurePosixPath(name).name != name or not name.endswith(_SUFFIX):
            yield f"{name} is not the name of a safetensors file in this folder"


def _shards(index: Path) -> tuple[Path, ...]:
    shards = [index.with_name(name) for name in sorted(set(read_weight_map(index).values()))]
    if missing := [path.name for path in shards if not is_file(path)]:
        raise CheckpointError(
            f"{index.parent} lacks {', '.join(missing)}, which {index.name} lists ({len(missing)} of {len(shards)} shards)."
            "\nDownload or copy them too."
        )
    return tuple(shards)


def _voices(folder: Path) -> tuple[Path, ...]:
    archive = folder / VOICES_FILE
    loose = [path for path in files_below(folder / VOICES_FOLDER) if path.suffix == ".pt"]
    return (*((archive,) if is_file(archive) else ()), *loose)


def missing_advice(names: Iterable[str], has_weights: bool, kind: str, adapter: str) -> str:
    """What to do about a folder or a repository (`kind`) with the files `names` that lacks files of a checkpoint; "" if
    nothing is known.

    adapter: the option, or the commands, that name its adapter beside a base.
    """
    names = sorted(names)
    if has_weights:
        return (
            "A fine-tune has the codec and the text tokenizer of its base model: copy these files from there into this "
            f"{kind}."
        )
    if ADAPTER_FILE in names:
        return f"It has an adapter. Name the {kind} of the base model, and add {adapter}"
    if pickles := [name for name in names if name.endswith(_PICKLES) and "/" not in name]:
        named = ", ".join(pickles)
        return f"Weights are read from safetensors files only: convert {named} with safetensors.torch.save_file."
    if other := [name for name in names if name.endswith(_OTHER_LIBRARIES)]:
        return f"The weights in {', '.join(other)} are for another library: use the checkpoint for PyTorch."
    return ""
