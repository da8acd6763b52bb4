"""The text token of a step: forced, or a replacement of a drawn word, or the draw."""

import pytest
import torch
from folders import TINY

from pplex.export import weights
from pplex.export.checkpoint import open_checkpoint
from pplex.export.layers import even_noise
from pplex.export.temporal import Temporal
from pplex.runtime.config import END_OF_PADDING

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
PAD = CHECKPOINT.config.text_padding


@pytest.fixture(scope="module")
def temporal() -> Temporal:
    module = weights.load("temporal", CHECKPOINT)
    assert isinstance(module, Temporal)
    return module


def test_only_a_drawn_word_is_replaced(temporal: Temporal) -> None:
    draw = torch.tensor([PAD, END_OF_PADDING, 7, 7, 1, 2])
    replacement = torch.tensor([9, 9, 9, -1, 9, END_OF_PADDING])
    assert temporal.replaced(draw, replacement).tolist() == [PAD, END_OF_PADDING, 9, 7, 9, END_OF_PADDING]


@pytest.mark.parametrize("forced, replacement, wanted", [(-1, -1, None), (-1, 9, 9), (5, 9, 5), (5, -1, 5)])
def test_a_forced_token_comes_before_a_replacement(
    temporal: Temporal, forced: int, replacement: int, wanted: int | None
) -> None:
    """Logits, hidden state and draw are those of a free step; only the token differs."""
    config = CHECKPOINT.config
    codes = torch.tensor(config.initial_tokens)[None, None]
    zero, ones = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    rings = [torch.zeros(1, 2, 96, 16) for _ in range(2 * config.temporal.layers)]
    given = codes, torch.zeros(1, 1, config.temporal.dim), zero
    settings = *even_noise(1, 17), ones, ones.long()

    def step(*chosen: int) -> list[torch.Tensor]:
        return list(temporal(*given, *torch.tensor(chosen)[:, None], *settings, *[ring.clone() for ring in rings]))

    free, got = step(-1, -1), step(forced, replacement)
    assert int(free[1]) == int(free[2]) not in (PAD, END_OF_PADDING)  # greedy: the most probable word
    assert int(got[1]) == (int(free[2]) if wanted is None else wanted)
    for mine, theirs in zip([got[0], *got[2:]], [free[0], *free[2:]], strict=True):
        assert torch.equal(mine, theirs)
