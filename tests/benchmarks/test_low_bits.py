"""The rotations that `benchmarks/low_bits.py` compares: a rotated model computes the same."""

from pathlib import Path

import torch
from low_bits_model import Recipe, drifts, exact_modules, outputs, rounded_modules
from low_bits_rotation import Rotation, hadamard

from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import ForcedHistory

CHECKPOINT = Path(__file__).parents[1] / "golden" / "tiny" / "checkpoint"
STEPS = 24


def test_hadamard_matrices_are_orthogonal() -> None:
    found = hadamard(64, seed=3)
    assert torch.allclose(found @ found.T, torch.eye(64, dtype=torch.float64))
    assert torch.allclose(found.abs(), torch.full((64, 64), 0.125, dtype=torch.float64))


def test_a_rotated_model_computes_the_same_and_rounds_otherwise() -> None:
    checkpoint = open_checkpoint(CHECKPOINT)
    config, rotation = checkpoint.config, Rotation.drawn(checkpoint.config)
    rotated = rotation.applied(checkpoint)
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, config.text_card, (STEPS, config.num_streams), generator=random)
    embedding = torch.randn(STEPS, config.temporal.dim, generator=random)  # as of a voice
    here, there = ForcedHistory(codes, embedding), ForcedHistory(codes, embedding @ rotation.temporal.float())

    exact = outputs(exact_modules(checkpoint, config), config, [here])
    turned = drifts(outputs(exact_modules(rotated, config), config, [there]), exact, same_basis=False)
    assert max(turned["largest_text"], turned["largest_audio"]) < 1e-3

    nearest = Recipe(None)
    straight = drifts(outputs(rounded_modules(checkpoint, config, nearest), config, [here]), exact)
    turned = drifts(outputs(rounded_modules(rotated, config, nearest), config, [there]), exact, same_basis=False)
    assert straight["audio"] > 0.01 and turned["audio"] > 0.01
    assert straight["audio"] != turned["audio"]
