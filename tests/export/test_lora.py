"""An adapter is merged like moshi's own package merges it, or refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from adapters import MERGED, RANK, SCALING, matrices, sampled, write_adapter
from folders import TINY
from layouts import by_step, copied, edit_lm, halved, int8, rename_lm, weights_of, write_config
from layouts import read_config as config_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pplex.export.build import BuildOptions, _identity
from pplex.export.build_plan import plan_build
from pplex.export.calibration import weights_mark
from pplex.export.checkpoint import LM_FILE, Checkpoint, open_checkpoint
from pplex.export.layout import CONSOLIDATED_FILE, Q8_FILE
from pplex.runtime.errors import CheckpointError, ConfigError, PplexError

SETTINGS = {"lora": True, "lora_rank": RANK, "lora_scaling": SCALING}
TEXT_HEAD = {"text_linear.lora_A.weight": (RANK, 32), "text_linear.lora_B.weight": (400, RANK)}


def recorded_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapter that moshi's package merged."""
    with safe_open(MERGED, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    return {key: tuple(shape) for key, shape in shapes.items()}


def adapter(folder: Path, tensors: dict[str, Tensor] | None = None, **settings: object) -> Path:
    """A file of an adapter beside its config.json."""
    folder.mkdir(exist_ok=True)
    tensors = matrices(TEXT_HEAD) if tensors is None else tensors
    return write_adapter(folder / "lora.safetensors", tensors, {**SETTINGS, **settings})


def read(checkpoint: Checkpoint, key: str) -> Tensor:
    """A tensor by its key in the state of moshi's modules."""
    if match := re.fullmatch(r"(.*self_attn)\.(in|out)_projs\.(\d+)\.weight", key):
        sets = 16 if key.startswith("depformer.") else 1
        whole = f"{match[1]}.{'in_proj_' if match[2] == 'in' else 'out_proj.'}weight"
        return checkpoint.read(whole, int(match[3]), sets)
    return checkpoint.read(key)


@pytest.mark.parametrize("layout", ["one file", "consolidated"])
def test_merged_weights_equal_those_of_moshi(tmp_path: Path, layout: str) -> None:
    folder = copied(tmp_path / "checkpoint")
    if layout == "consolidated":
        rename_lm(folder, CONSOLIDATED_FILE, by_step(weights_of(folder)))
    path = adapter(tmp_path / "adapter", matrices(recorded_shapes()))
    checkpoint, expected = open_checkpoint(folder, path), load_file(MERGED)
    changed = {key.partition(".lora_")[0] + ".weight" for key in recorded_shapes()}
    assert len(changed) > 150 and changed <= expected.keys()
    for key, numbers in expected.items():
        found = read(checkpoint, key)
        assert (found.dtype is torch.float32) == (key in changed)
        torch.testing.assert_close(sampled(found.float()), numbers.float(), rtol=1e-6, atol=1e-6)


def test_steps_of_one_matrix_may_be_stacked(tmp_path: Path) -> None:
    """Moshi's modules read both forms: each step's matrices, or all one below the other."""
    shapes = {
        f"depformer.layers.1.self_attn.out_projs.{k}.lora_{side}.weight": shape
        for k in range(16)
        for side, shape in {"A": (RANK, 16), "B": (16, RANK)}.items()
    }
    steps = matrices(shapes)
    stacked = {
        f"depformer.layers.1.self_attn.out_proj.lora_{side}.weight": torch.cat(
            [tensor for key, tensor in steps.items() if f"lora_{side}" in key]
        )
        for side in "AB"
    }
    key = "depformer.layers.1.self_attn.out_proj.weight"
    expected = open_checkpoint(TINY / "checkpoint", adapter(tmp_path / "steps", steps)).read(key)
    found = open_checkpoint(TINY / "checkpoint", adapter(tmp_path / "stacked", stacked)).read(key)
    assert torch.equal(found, expected)
    assert not torch.equal(found, open_checkpoint(TINY / "checkpoint").read(key).float())


def test_steps_without_a_change_stay_as_they_are(tmp_path: Path) -> None:
    shapes = {
        f"depformer.layers.0.self_attn.in_projs.3.lora_{s}.weight": v for s, v in {"A": (4, 16), "B": (48, 4)}.items()
    }
    base, key = open_checkpoint(TINY / "checkpoint"), "depformer.layers.0.self_attn.in_proj_weight"
    merged = open_checkpoint(TINY / "checkpoint", adapter(tmp_path, matrices(shapes)))
    same = [torch.equal(merged.read(key, k, 16).float(), base.read(key, k, 16).float()) for k in range(16)]
    assert same == [k != 3 for k in range(16)]


def test_whole_tensors_in_an_adapter_replace_those_of_the_base(tmp_path: Path) -> None:
    """Moshi-finetune saves them when it also trains embeddings."""
    whole = {"emb.3.weight": torch.full((2049, 32), 0.5), "out_norm.alpha": torch.full((1, 1, 32), 2.0)}
    merged = open_checkpoint(TINY / "checkpoint", adapter(tmp_path, {**matrices(TEXT_HEAD), **whole}))
    assert all(torch.equal(merged.read(key), tensor) for key, tensor in whole.items())


def test_the_given_scaling_wins_and_a_folder_may_be_named(tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter")
    base = open_checkpoint(TINY / "checkpoint").read("text_linear.weight").float()
    two, one = (
        open_checkpoint(TINY / "checkpoint", place, scaling).read("text_linear.weight")
        for place, scaling in ((path.parent, None), (path, 1.0))
    )
    torch.testing.assert_close(two - base, 2 * (one - base), rtol=1e-4, atol=1e-6)
    assert not torch.equal(one, base)


def test_a_checkpoint_that_needs_an_adapter_is_built_with_it_only(tmp_path: Path) -> None:
    """Moshi-finetune writes adapter and config.json into one folder."""
    folder = copied(tmp_path / "checkpoint")
    write_config(folder, {**config_of(folder), **SETTINGS, "lora_name": "tuned.safetensors"})
    save_file(matrices(TEXT_HEAD), folder / "tuned.safetensors")
    with pytest.raises(CheckpointError, match=r"lora: true.*--lora .*checkpoint/tuned\.safetensors"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, folder / "tuned.safetensors").lora is not None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"text_linear.lora_B.weight": None}, r"text_linear\.lora_B\.weight +missing"),
        ({"linears.2.lora_A.weight": torch.zeros(4, 16)}, r"linears\.2\.lora_B\.weight +missing"),
        ({"text_linear.lora_A.weight": torch.zeros(4, 31)}, r"text_linear\.lora_A\.weight .*\(4, 32\) .*\(4, 31\)"),
        ({"text_linear.lora_B.weight": torch.zeros(400, 8)}, r"text_linear\.lora_B\.weight .*\(400, 4\) .*\(400, 8\)"),
        ({"text_linear.lora_B.weight": torch.zeros(400, 4, dtype=torch.int8)}, r"text_linear\.lora_B\.weight .*I8"),
        ({"linears.16.lora_A.weight": torch.zeros(4, 16), "linears.16.lora_B.weight": torch.zeros(2048, 4)},
         r"linears\.16\.lora_A\.weight +no such matrix"),
        ({f"depformer.layers.0.self_attn.in_projs.16.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"},
         r"in_projs\.16\.lora_A\.weight +steps 0 to 15 +step 16"),
        ({"out_norm.lora_A.weight": torch.zeros(4, 16), "out_norm.lora_B.weight": torch.zeros(16, 4)}, "no such matrix"),
        ({"emb.0.weight": torch.zeros(2049, 31)}, r"emb\.0\.weight .*\(2049, 32\)"),
        ({"extra.weight": torch.zeros(1)}, r"extra\.weight +no such tensor"),
        ({"base_model.model.text_linear.lora_A.weight": torch.zeros(4, 32)}, "library PEFT"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Tensor | None], words: str) -> None:
    tensors = {key: tensor for key, tensor in {**matrices(TEXT_HEAD), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(TINY / "checkpoint", adapter(tmp_path, tensors))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"lora_rank": 8}, r"rank 8.*does not fit"),
        ({"lora_scaling": None}, "does not name lora_scaling.*--lora-scaling"),
        ({"lora_scaling": 0}, "must be a number other than 0"),
        ({"lora_scaling": "2"}, "must be a number"),
        ({"lora_rank": 2.5}, "lora_rank is 2.5"),
    ],
)
def test_wrong_settings_of_an_adapter_are_refused(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(PplexError, match=f"(?s){words}"):
        open_checkpoint(TINY / "checkpoint", adapter(tmp_path, **settings))


def test_files_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors does not exist"):
        open_checkpoint(TINY / "checkpoint", tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=r"is not an adapter.*whole weights"):
        open_checkpoint(TINY / "checkpoint", TINY / "checkpoint" / LM_FILE)
    path = adapter(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(TINY / "checkpoint", path)
    adapter(tmp_path).with_name("config.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        open_checkpoint(TINY / "checkpoint", path)


@pytest.mark.parametrize("key", ["text_linear.lora_A.weight", "linears.0.frozen_W.weight"])
def test_an_unmerged_adapter_inside_a_checkpoint_is_never_left_out(tmp_path: Path, key: str) -> None:
    folder = copied(tmp_path / "checkpoint")
    edit_lm(folder, {key: torch.zeros(4, 32)})
    with pytest.raises(CheckpointError, match=f"unmerged LoRA.*{re.escape(key)}(?s:.*)--lora FILE"):
        open_checkpoint(folder)


def test_an_adapter_for_eight_sets_changes_eight(tmp_path: Path) -> None:
    folder = copied(tmp_path / "checkpoint")
    rename_lm(folder, LM_FILE, halved(weights_of(folder)))
    shapes = {"linears.7.lora_A.weight": (RANK, 16), "linears.7.lora_B.weight": (2048, RANK)}
    merged = open_checkpoint(folder, adapter(tmp_path / "adapter", matrices(shapes)))
    assert merged.depth_sets == 8 and merged.read("linears.7.weight").dtype is torch.float32


def test_quantized_weights_take_no_adapter(tmp_path: Path) -> None:
    folder = copied(tmp_path / "checkpoint")
    rename_lm(folder, Q8_FILE, int8(weights_of(folder)))
    with pytest.raises(CheckpointError, match=r"(?s)is quantized.*Name the base model that is not quantized"):
        open_checkpoint(folder, adapter(tmp_path / "adapter"))


def test_a_build_does_not_resume_or_reuse_a_calibration_with_another_adapter(tmp_path: Path) -> None:
    shapes = {"linears.0.lora_A.weight": (RANK, 16), "linears.0.lora_B.weight": (2048, RANK)}
    first, second = adapter(tmp_path / "a", matrices(shapes, seed=1)), adapter(tmp_path / "b", matrices(shapes, seed=2))
    given: list[tuple[Path | None, float | None]] = [(None, None), (first, None), (second, None), (first, 1.0)]
    checkpoints = [open_checkpoint(TINY / "checkpoint", *one) for one in given]
    options = [BuildOptions(lora=path, lora_scaling=scaling) for path, scaling in given]
    plans = [plan_build(checkpoint, option) for checkpoint, option in zip(checkpoints, options, strict=True)]
    assert len({_identity(plan) for plan in plans}) == len({weights_mark(one) for one in checkpoints}) == len(given)
