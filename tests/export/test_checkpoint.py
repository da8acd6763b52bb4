"""Unfit checkpoints are refused with a list of all problems."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import copied, edit_lm, halved, rename_lm, weights_of
from safetensors.torch import load_file

from pplex.export import weights
from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE, open_checkpoint
from pplex.export.layers import even_noise
from pplex.runtime.errors import CheckpointError, ConfigError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that tests may damage."""
    return copied(tmp_path / "checkpoint")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def test_all_differences_are_in_one_table(checkpoint: Path) -> None:
    text_emb = load_file(checkpoint / LM_FILE)["text_emb.weight"]
    edit_lm(
        checkpoint,
        {"text_emb.weight": None, "text_embedding.weight": text_emb, "out_norm.alpha": torch.ones(1, 1, 31)},
    )
    lines = refusal(checkpoint).splitlines()
    rows = {line.split()[1]: line for line in lines if line.startswith(LM_FILE)}
    assert rows.keys() == {"text_emb.weight", "text_embedding.weight", "out_norm.alpha"}
    assert rows["text_emb.weight"].endswith("missing") and "(401, 32)" in rows["text_emb.weight"]
    assert "no such tensor" in rows["text_embedding.weight"]
    assert "(1, 1, 32)" in rows["out_norm.alpha"] and "(1, 1, 31)" in rows["out_norm.alpha"]


@pytest.mark.parametrize("name", [LM_FILE, MIMI_FILE])
@pytest.mark.parametrize("keep", [0, 5, 3000, -1])
def test_a_truncated_file_is_refused(checkpoint: Path, name: str, keep: int) -> None:
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(checkpoint)
    assert name in message and "damaged" in message


def test_missing_files_are_all_named(checkpoint: Path) -> None:
    (checkpoint / MIMI_FILE).unlink()
    (checkpoint / TEXT_TOKENIZER_FILE).unlink()
    message = refusal(checkpoint)
    assert MIMI_FILE in message and TEXT_TOKENIZER_FILE in message and LM_FILE not in message


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lm": {"dimension": 32}}, "unknown keys in lm: dimension"),
        ({"lm": {"norm": "layer_norm"}}, "only 'rms_norm_f32' is implemented"),
        ({"lm": {"dim": "big"}}, "wrong type"),
        ({"lm": {"delays": [0, 1]}}, "17 numbers"),
        ({"lm": {"delays": [0, 12, *[1] * 15]}}, "17 numbers from 0 to 11"),
        ({"lm": {"num_heads": 3}}, "heads must divide"),
        ({"lm": {"card": 64}, "mimi": {"quantizer": {"bins": 64}}}, "codes of silence"),
        ({"lm": {"text_card": 3.5}}, r"whole number \(text_card\)"),
        ({"lm": {"context": 2}}, "at least 32 steps"),
        ({"lm": {"max_period": -1}}, "max_period"),
        ({"mimi": {"seanet": {"ratios": []}}}, "ratios must be positive"),
        ({"mimi": {"transformer": {"context": 2}}}, "at least 4 steps"),
        ({"mimi": {"resampler": {}}}, "unknown parts of mimi: resampler"),
        ({"mimi": {"transformer": {"context": 25}}}, "multiple of the 2 steps"),
    ],
)
def test_an_unfit_configuration_is_refused(checkpoint: Path, change: dict[str, dict[str, object]], words: str) -> None:
    config = json.loads((checkpoint / CONFIG_FILE).read_text())
    for part, values in change.items():
        for key, value in values.items():
            config[part][key] = {**config[part].get(key, {}), **value} if isinstance(value, dict) else value
    (checkpoint / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=words):
        open_checkpoint(checkpoint)


def test_a_configuration_that_is_not_json_is_refused(checkpoint: Path) -> None:
    (checkpoint / CONFIG_FILE).write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        open_checkpoint(checkpoint)


def halve(folder: Path, last_table: bool) -> None:
    rename_lm(folder, LM_FILE, halved(weights_of(folder), last_table))


@pytest.mark.parametrize("last_table", [False, True])
def test_eight_depth_sets_give_the_same_first_eight_steps(checkpoint: Path, last_table: bool) -> None:
    sixteen = open_checkpoint(checkpoint)
    expected = weights.load("depth", sixteen).state_dict()
    halve(checkpoint, last_table)
    eight = open_checkpoint(checkpoint)
    assert eight.depth_sets == 8
    found = weights.load("depth", eight).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_eight_depth_sets_are_copied_for_sixteen_steps(checkpoint: Path) -> None:
    halve(checkpoint, last_table=True)
    eight = open_checkpoint(checkpoint)
    steps = weights.load("depth", eight, replace(eight.config, depth_steps=16)).state_dict()
    for k in range(8, 16):
        assert torch.equal(steps[f"steps.{k}.output.weight"], steps[f"steps.{k - 8}.output.weight"])
        assert torch.equal(steps[f"steps.{k}.out_proj.1.weight"], steps[f"steps.{k - 8}.out_proj.1.weight"])
        assert torch.equal(steps[f"steps.{k}.emb"], steps[f"steps.{k - 8}.emb"]) == (k > 8)


def test_sixteen_steps_need_the_table_of_the_eighth(checkpoint: Path) -> None:
    halve(checkpoint, last_table=False)
    eight = open_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=r"lacks depformer_emb\.7\.weight"):
        weights.load("depth", eight, replace(eight.config, depth_steps=16))


def depth_logits(folder: Path) -> torch.Tensor:
    """Logits of 8 depth steps with forced tokens: [2, 8, 2048]."""
    checkpoint = open_checkpoint(folder)
    tokens = torch.arange(18).reshape(2, 9)
    hidden = torch.linspace(-1, 1, 2 * checkpoint.config.temporal.dim).reshape(2, -1)
    ones, noise = torch.ones(2), even_noise(2, checkpoint.config.num_streams)
    _, logits = weights.load("depth", checkpoint)(hidden, tokens[:, 0], tokens[:, 1:], *noise, ones, ones.long())
    return torch.as_tensor(logits)


@pytest.mark.parametrize("sizes", [{"dep_q": 8}, {"dep_q": 8, "depformer_context": 4}, {"depformer_context": 2}])
@pytest.mark.parametrize("form", ["lm", "flat"])
def test_the_last_depth_step_sees_the_first_whatever_config_says(
    checkpoint: Path, sizes: dict[str, int], form: str
) -> None:
    """The reference makes 16 steps of any checkpoint. A ring of 8 would be full at step 7 and hide entry 0."""
    expected = depth_logits(checkpoint)
    halve(checkpoint, last_table=False)
    data = json.loads((checkpoint / CONFIG_FILE).read_text())
    lm = {**data["lm"], **sizes}
    parts = {"lm": lm} if form == "lm" else lm
    (checkpoint / CONFIG_FILE).write_text(json.dumps({"mimi": data["mimi"], **parts}))
    assert torch.equal(depth_logits(checkpoint), expected)
