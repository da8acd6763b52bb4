"""A number that is NaN or infinite is found in every file, before anything long begins."""

from pathlib import Path

import pytest
import torch
from adapters import matrices, write_adapter
from folders import TINY
from layouts import by_step, copied, edit_lm, int8, rename_lm, shard, weights_of
from safetensors.torch import load_file, save_file

from pplex.export import finite
from pplex.export.build import build
from pplex.export.checkpoint import MIMI_FILE, open_checkpoint
from pplex.export.finite import check_finite, stored_tensors
from pplex.export.layout import Q8_FILE
from pplex.export.source import CheckpointSource
from pplex.runtime.errors import CheckpointError

KEY = "depformer.layers.0.self_attn.in_proj_weight"


def refusal(folder: Path, lora: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_finite(open_checkpoint(folder, lora, 1.0).tensors.values(), lambda nbytes: None)
    return str(caught.value)


def broken(tensor: torch.Tensor, value: float = float("nan"), row: int = -1) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[row] = value
    return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("chunk_nbytes", [1000, 1 << 26])
def test_every_wrong_tensor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, chunk_nbytes: int
) -> None:
    monkeypatch.setattr(finite, "CHUNK_NBYTES", chunk_nbytes)
    folder = copied(tmp_path / "checkpoint")
    lm, codec = weights_of(folder), load_file(folder / MIMI_FILE)
    bias = "encoder.model.0.conv.conv.bias"
    edit_lm(folder, {KEY: broken(lm[KEY], value), "emb.7.weight": broken(lm["emb.7.weight"], value, 0)})
    save_file({**codec, bias: broken(codec[bias], value)}, folder / MIMI_FILE)
    message = refusal(folder)
    for line in (
        f"model.safetensors: {KEY} has 16 of 12288 numbers",
        "model.safetensors: emb.7.weight has 32 of 65568 numbers",
        f"{MIMI_FILE}: {bias} has 1 of 4 numbers",
    ):
        assert line in message
    assert message.count(" has ") == 3


def test_wrong_numbers_are_found_in_shards_steps_scales_and_adapters(tmp_path: Path) -> None:
    folder = copied(tmp_path / "shards")
    edit_lm(folder, {"out_norm.alpha": broken(weights_of(folder)["out_norm.alpha"])})
    shard(folder)
    assert "-of-00003.safetensors: out_norm.alpha has 32 of 32" in refusal(folder)
    folder = copied(tmp_path / "steps")
    steps = by_step(weights_of(folder))
    key = "depformer.layers.1.self_attn.out_projs.9.weight"
    rename_lm(folder, "consolidated.safetensors", {**steps, key: broken(steps[key])})
    assert f"consolidated.safetensors: {key} has 16 of 256" in refusal(folder)
    folder = copied(tmp_path / "q8")
    quantized = int8(weights_of(folder))
    rename_lm(folder, Q8_FILE, {**quantized, f"{KEY}_scb": broken(quantized[f"{KEY}_scb"], float("inf"))})
    assert f"{Q8_FILE}: {KEY}_scb has 1 of 768" in refusal(folder)
    pair = matrices({"linears.0.lora_A.weight": (2, 16), "linears.0.lora_B.weight": (2048, 2)})
    pair["linears.0.lora_B.weight"][5, 1] = float("nan")
    adapter = write_adapter(tmp_path / "lora.safetensors", pair)
    assert "lora.safetensors: linears.0.lora_B.weight has 1 of 4096" in refusal(TINY / "checkpoint", adapter)


def test_large_numbers_are_finite(tmp_path: Path) -> None:
    """Their sum is not."""
    folder = copied(tmp_path / "checkpoint")
    edit_lm(folder, {"out_norm.alpha": torch.full((1, 1, 32), 3e38)})
    check_finite(open_checkpoint(folder).tensors.values(), lambda nbytes: None)


def test_a_build_refuses_before_the_first_graph(tmp_path: Path) -> None:
    folder, stages = copied(tmp_path / "checkpoint"), list[str]()
    edit_lm(folder, {"out_norm.alpha": torch.full((1, 1, 32), float("nan"))})
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        build(
            CheckpointSource(folder, None, None), tmp_path / "bundle", progress=lambda stage, *_: stages.append(stage)
        )
    assert set(stages) == {"check"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_progress_counts_every_stored_byte_once() -> None:
    tensors = open_checkpoint(TINY / "checkpoint").tensors.values()
    read: list[int] = []
    check_finite(tensors, read.append)
    sizes = [(TINY / "checkpoint" / name).stat().st_size for name in ("model.safetensors", MIMI_FILE)]
    assert sum(read) == sum(tensor.nbytes for tensor in stored_tensors(tensors))
    assert 0.95 * sum(sizes) < sum(read) < sum(sizes)  # the rest are headers
