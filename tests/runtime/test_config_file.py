"""config.json in each form: sizes are read, and another model is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from pplex.runtime.config import RELEASED, RELEASED_ARGUMENTS
from pplex.runtime.config_file import ConfigFile, read_config
from pplex.runtime.errors import ConfigError


def read(folder: Path, data: Any) -> ConfigFile:
    (folder / "config.json").write_text(json.dumps(data))
    return read_config(folder / "config.json")


def refusal(folder: Path, data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, data)
    return str(caught.value)


def test_a_bare_or_missing_file_has_the_released_sizes(tmp_path: Path) -> None:
    assert read_config(tmp_path / "config.json") == ConfigFile()
    for data in ({"model_type": "personaplex", "version": "7b-v1"}, {}, {"version": 2, "lm": {}, "mimi": {}}):
        assert read(tmp_path, data).config == RELEASED


def test_the_forms_have_the_same_sizes(tmp_path: Path) -> None:
    sizes = {"dim": 64, "num_heads": 4, "context": 512, "depformer_dim": 32, "depformer_num_heads": 4}
    ours, flat = read(tmp_path, {"lm": sizes}), read(tmp_path, {**sizes, "model_type": "moshi"})
    assert ours.config == flat.config != RELEASED
    assert ours.lm == flat.lm == sizes
    assert (ours.model_type, flat.model_type) == (None, "moshi")


def test_a_width_that_is_null_is_scaled(tmp_path: Path) -> None:
    """As the constructor of moshi's model does."""
    data = {**RELEASED_ARGUMENTS["lm"], "depformer_dim_feedforward": None}
    assert read(tmp_path, data).config == RELEASED


@pytest.mark.parametrize(
    "data",
    [
        {"conditioners": {}, "fuser": {"sum": [], "prepend": [], "cross_attention_pos_emb_scale": 1}},
        {"fuser": None, "kv_repeat": 1, "cross_attention": False, "norm_emb": None, "bias_proj": False},
        {"text_card": 400, "text_card_out": 400},
        {"lora": False, "quantize": None, "lora_rank": 128, "lora_scaling": 2.0, "lora_name": None},
    ],
)
def test_parts_that_are_switched_off_are_accepted(tmp_path: Path, data: dict[str, Any]) -> None:
    found = read(tmp_path, data)
    assert not found.lora and not found.quantized and not found.names


def test_all_problems_are_in_one_message(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        {
            "model_type": "tts",
            "kv_repeat": 2,
            "norm_emb": True,
            "mimi_name": "file:///m.safetensors",
            "yarn": 1,
            "quantize": 4,
        },
    )
    for words in (
        'model_type is "tts" (text to speech)',
        "kv_repeat is 2: several heads",
        "norm_emb is true: embeddings are normalized",
        'mimi_name is "file:///m.safetensors": it names a file elsewhere',
        "unknown keys: yarn",
        "quantize is 4: it must be true or false",
        "docs/checkpoints.md",
    ):
        assert words in message


@pytest.mark.parametrize("name", ["/weights.safetensors", "a/../../b.safetensors", "hf://a/b/c", "", 3])
@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "tokenizer_name", "lora_name"])
def test_names_lead_to_files_in_the_folder_only(tmp_path: Path, key: str, name: object) -> None:
    assert f"{key} is {json.dumps(name)}" in refusal(tmp_path, {key: name})
    assert read(tmp_path, {key: "below/x.safetensors"}).names == {key: "below/x.safetensors"}


@pytest.mark.parametrize("data", [[], "text", 3, None])
def test_anything_but_an_object_is_refused(tmp_path: Path, data: object) -> None:
    assert "must hold a JSON object" in refusal(tmp_path, data)
    assert "lm must be a JSON object" in refusal(tmp_path, {"lm": [data]})


def test_a_very_deep_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not readable as JSON"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("value", [{"depformer_dim_feedforward": [64] * 8}, {"delays": None}, {"num_layers": "32"}])
def test_sizes_of_a_wrong_type_are_refused(tmp_path: Path, value: dict[str, Any]) -> None:
    assert "config.json: " in refusal(tmp_path, value) and "wrong type" in refusal(tmp_path, value)
