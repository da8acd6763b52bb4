"""A tensor in any form gives the same rows one by one as all at once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pplex.export.checkpoint import CheckpointError
from pplex.export.foreign import check_native
from pplex.export.stored import read_header
from pplex.export.tensors import Dequantized, Joined, Merged, Part, Source


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, Source]:
    """Matrices [12, 5] in every form."""
    torch.manual_seed(0)
    numbers = {
        **{f"part{i}": torch.randn(4, 5) for i in range(3)},
        "whole": torch.randn(12, 5).to(torch.bfloat16),
        "tall": torch.randn(24, 5),
        "int8": torch.randint(-127, 128, (12, 5), dtype=torch.int8),
        "scale": torch.rand(12),
        "down": torch.randn(2, 5),
        "up": torch.randn(12, 2),
    }
    save_file(numbers, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    joined = Joined(tuple(stored[f"part{i}"] for i in range(3)))
    lower = Merged(Part(joined, 1, 2), stored["down"], Part(stored["up"], 1, 2), 3.0)
    return {
        "stored": stored["whole"],
        "joined": joined,
        "part": Part(stored["tall"], 1, 2),
        "int8": Dequantized(stored["int8"], stored["scale"]),
        "merged": Merged(stored["whole"], stored["down"], stored["up"], 0.5),
        "merged in parts": Joined((Part(joined, 0, 2), lower)),
    }


@pytest.mark.parametrize("form", ["stored", "joined", "part", "int8", "merged", "merged in parts"])
def test_rows_are_those_of_the_whole(forms: dict[str, Source], form: str) -> None:
    source = forms[form]
    whole = source.rows(0, 12)
    assert whole.shape == source.shape == (12, 5)
    for start, stop in [(0, 1), (3, 5), (4, 8), (2, 12), (11, 12)]:
        torch.testing.assert_close(source.rows(start, stop), whole[start:stop], rtol=1e-6, atol=1e-6)


def test_int8_is_a_share_of_the_largest_number_of_its_row(forms: dict[str, Source]) -> None:
    source = forms["int8"]
    assert isinstance(source, Dequantized)
    expected = source.weight.rows(0, 12).float() / 127 * source.scale.rows(0, 12)[:, None]
    torch.testing.assert_close(source.rows(0, 12), expected)


def test_every_form_knows_its_stored_tensors(forms: dict[str, Source]) -> None:
    found = {name: sorted({tensor.key for tensor in source.stored()}) for name, source in forms.items()}
    assert found == {
        "stored": ["whole"],
        "joined": ["part0", "part1", "part2"],
        "part": ["tall"],
        "int8": ["int8", "scale"],
        "merged": ["down", "up", "whole"],
        "merged in parts": ["down", "part0", "part1", "part2", "up"],
    }


@pytest.mark.parametrize(
    "key, words",
    [
        ("fuser.x.weight", "conditions"),
        ("depformer_text_emb.low_rank.weight", "products of two matrices"),
        ("text_emb.out1.weight", "a second text stream"),
        ("transformer.layers.0.cross_attention.in_projs.0.weight", "a second input"),
        ("transformer.layers.0.norm_cross.weight", "a second input"),
        ("depformer_norms.3.alpha", "a norm at the end of each depth step"),
        ("base_model.model.text_linear.lora_A.default.weight", "unmerged LoRA"),
    ],
)
def test_tensors_of_other_models_are_named_with_their_purpose(key: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        check_native(["text_emb.weight", key], "model.safetensors")
    assert key in str(caught.value) and "model.safetensors" in str(caught.value)
