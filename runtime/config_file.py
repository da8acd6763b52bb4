"""Reads a checkpoint's config.json in each form that occurs. Called by `export.checkpoint`, `engines` and `bench`.

PersonaPlex's names the model only. Ours has the sizes in `lm` and `mimi`. Kyutai's has the sizes of the language model and
names of files, all at the top level; it may have `mimi` too. A key that would make another model is refused by name.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pplex.runtime.config import FAMILIES, RELEASED, RELEASED_ARGUMENTS, ModelConfig
from pplex.runtime.errors import ConfigError
from pplex.runtime.files import is_there, read_text

CONFIG_FILE = "config.json"
WEIGHTS_NAME, CODEC_NAME, TOKENIZER_NAME, LORA_NAME = _NAMES = (
    "moshi_name",
    "mimi_name",
    "tokenizer_name",
    "lora_name",
)

# Keys that do not change the model: origin, suggested sampling, training, and sizes of parts that are switched off.
_IGNORED = {"version", "model_id", "lm_gen_config", "gradient_checkpointing", "existing_text_end_padding_id",
            "extra_heads_dim"}  # fmt: skip
_OURS = {"lm", "mimi"}
_LORA = {"lora", "lora_rank", "lora_scaling"}

# Keys of models that are not implemented, and what they are for. A value that switches the part off is accepted.
_OTHER_MODELS = {
    "conditioners": "conditions steer the model by a label or a description",
    "fuser": "it adds conditions to the model's input",
    "extra_heads_num_heads": "extra heads predict more than tokens, for example the end of a turn",
    "demux_second_stream": "it puts two text streams into one",
    "demux_second_text_stream": "it puts two text streams into one",
    "text_card_out": "the model writes other text tokens than it reads",
    "depformer_weights_per_step_schedule": "steps of the depth transformer share weights",
    "depformer_low_rank_embeddings": "embeddings are products of two matrices",
    "depformer_norm": "each depth step has a norm at its end",
    "norm_emb": "embeddings are normalized",
    "bias_proj": "output layers have a bias",
    "cross_attention": "attention reads a second input",
    "kv_repeat": "several heads of attention share keys",
    "tts_config": "the model speaks given texts (text to speech)",
    "stt_config": "the model writes down speech (speech to text)",
    "mimi_config_name": "it names the sizes of another codec; put them under mimi in this file",
}
_OTHER_TYPES = {"hibiki": "a speech translator", "tts": "text to speech", "stt": "speech to text"}
_ADVICE = "docs/checkpoints.md lists the checkpoints that can be built."


@dataclass(frozen=True)
class ConfigFile:
    """The contents of a config.json.

    model_type: a name in FAMILIES, or None if the file names none. names: files of the folder, by the keys WEIGHTS_NAME,
    CODEC_NAME, TOKENIZER_NAME and LORA_NAME. lora: the model needs an adapter. quantized: weights have 8 bits.
    lm, mimi: the given arguments of the language model and, by part, of the codec.
    """

    config: ModelConfig = RELEASED
    model_type: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    lora: bool = False
    quantized: bool = False
    lm: Mapping[str, Any] = field(default_factory=dict)
    mimi: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> ConfigFile:
    """Read a config.json; sizes that it does not name are those of the released model, also if there is no file.

    Raises ConfigError for a file that is not JSON or describes another model, AccessError for an unreadable file.
    """
    if not is_there(path):
        return ConfigFile()
    data = read_object(path)
    if problems := [*_problems(data)]:
        raise ConfigError(
            f"{path} describes a model that cannot be built:\n  " + "\n  ".join(problems) + f"\n{_ADVICE}"
        )
    lm, mimi = data.get("lm") or _flat(data), data.get("mimi") or {}
    try:
        config = ModelConfig.from_arguments(lm, mimi)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    names = {key: data[key] for key in _NAMES if data.get(key) is not None}
    return ConfigFile(
        config, data.get("model_type"), names, bool(data.get("lora")), bool(data.get("quantize")), lm, mimi
    )


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises ConfigError for anything else, AccessError for an unreadable file."""
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}\nCopy or download it again.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object.\nCopy or download it again.")
    return data


def _problems(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _type_problems(data)
    yield from (f"{key} is {_shown(data[key])}: {why}" for key, why in _OTHER_MODELS.items() if _is_on(key, data))
    for key in _NAMES:
        if data.get(key) is not None and (problem := _name_problem(data[key])):
            yield f"{key} is {_shown(data[key])}: {problem}"
    for key in ("lora", "quantize"):
        if data.get(key) not in (None, False, True):
            yield f"{key} is {_shown(data[key])}: it must be true or false"
    flat = sorted(set(data) & set(RELEASED_ARGUMENTS["lm"]))
    if flat and "lm" in data:
        yield f"it has lm, and also {', '.join(flat)} at the top level: keep one of the two forms"
    for key in sorted(_OURS & set(data)):
        if not isinstance(data[key], dict):
            yield f"{key} must be a JSON object"
    known = {*RELEASED_ARGUMENTS["lm"], *_OURS, *_LORA, *_IGNORED, *_OTHER_MODELS, *_NAMES, "model_type", "quantize"}
    if unknown := sorted(set(data) - known):
        yield f"unknown keys: {', '.join(unknown)} (remove them if they do not change the model)"


def _type_problems(data: Mapping[str, Any]) -> Iterator[str]:
    kind = data.get("model_type")
    if "architectures" in data or "transformers_version" in data:
        yield (
            "it is a configuration of the library transformers, whose weights have other names; use the original "
            "checkpoint, for example kyutai/moshiko-pytorch-bf16"
        )
    if kind is not None and kind not in FAMILIES:
        what = _OTHER_TYPES.get(str(kind).lower())
        yield f"model_type is {_shown(kind)}{f' ({what})' if what else ''}: it must be {' or '.join(FAMILIES)}"


def _is_on(key: str, data: Mapping[str, Any]) -> bool:
    """Whether a key of _OTHER_MODELS has a value that changes the model."""
    value = data.get(key)
    if key == "fuser" and isinstance(value, dict):
        return any(value.get(method) for method in ("sum", "cross", "prepend"))
    if key == "text_card_out":
        return value not in (None, data.get("text_card", RELEASED.text_card))
    return value not in (None, False, 0, 1) if key == "kv_repeat" else bool(value)


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return "it must be the name of a file"
    if "://" in name:
        return "it names a file elsewhere; copy that file into this folder and name it here"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return "it leads out of this folder; copy that file into this folder and name it here"
    return None


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the language model in Kyutai's form."""
    lm = {key: data[key] for key in RELEASED_ARGUMENTS["lm"] if key in data}
    if lm.get("depformer_dim_feedforward", 0) is None:  # Kyutai's constructor then scales the width
        sizes = {**RELEASED_ARGUMENTS["lm"], **lm}
        lm["depformer_dim_feedforward"] = int(sizes["hidden_scale"] * sizes["depformer_dim"])
    return lm


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
