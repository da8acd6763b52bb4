"""The reference of validation equals the original code."""

import numpy as np
import pytest
import torch
from folders import TINY
from safetensors.numpy import load_file

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.bundle import Bundle
from pplex.runtime.stages import Stages
from pplex.validate.drift import reference_hidden
from pplex.validate.golden import VOICES, check_conversation, check_teacher_forced
from pplex.validate.reference import as_float32, torch_backend

CHECKPOINT = open_checkpoint(TINY / "checkpoint")


def test_all_steps_at_once_equal_the_recording_past_the_end_of_the_ring() -> None:
    expected = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    codes, steps = expected["codes"].T.astype(np.int64), expected["steps"]
    following = np.full((1, codes.shape[1]), -1)  # the history's last step has none
    with torch.inference_mode():
        whole, hidden = reference_hidden(CHECKPOINT, CHECKPOINT.config, np.concatenate([codes, following]))
        text = whole.text_logits(hidden)
    assert steps.max() > CHECKPOINT.config.temporal.capacity
    np.testing.assert_allclose(hidden[steps].numpy(), expected["hidden"], atol=2e-5)
    np.testing.assert_allclose(text[steps].numpy(), expected["text_logits"], atol=5e-5)


@pytest.mark.parametrize("name", VOICES)
def test_conversations_equal_the_recorded_ones(tiny_bundle: Bundle, name: str) -> None:
    bundle, backend = as_float32(tiny_bundle), torch_backend(CHECKPOINT, tiny_bundle.config)
    assert all(check.passed for check in check_conversation(bundle, TINY, name, backend))


def test_steps_one_by_one_equal_the_recording(tiny_bundle: Bundle) -> None:
    bundle, backend = as_float32(tiny_bundle), torch_backend(CHECKPOINT, tiny_bundle.config)
    assert all(check.passed for check in check_teacher_forced(bundle, TINY, backend))


def test_unread_logits_are_not_copied(tiny_bundle: Bundle) -> None:
    stages = Stages(as_float32(tiny_bundle), 1, device=torch_backend(CHECKPOINT, tiny_bundle.config))
    assert "text_logits" not in stages.tensors("temporal")
    stages.run_language(1)
