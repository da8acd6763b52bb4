"""Faults in drawing tokens from correct logits, which drift does not find."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import broken, constant, nodes
from folders import TINY
from hypothesis import given
from hypothesis import strategies as st
from torch import from_numpy, tensor

from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.export.layers import sample
from pplex.runtime.bundle import Bundle
from pplex.runtime.stages import Stages
from pplex.validate.report.schema import Measure
from pplex.validate.sections.sampling import may_be_drawn, sampling_measure

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
CODES = token_history(CHECKPOINT, unheard_pieces(CHECKPOINT.config, 2), 64)


def measure(bundle: Bundle) -> Measure:
    return sampling_measure(Stages(bundle, 1, logits=True), CODES, bundle.config.text_padding)


def no_noise(model: onnx.ModelProto, step: int) -> None:
    """The most probable token always wins."""
    shares = {node.output[0] for node in nodes(model, "Exp")}
    races = [node for node in nodes(model, "Div") if node.input[0] in shares]
    races[step].input[1] = constant(model, "no.noise", np.ones(1, np.float32))


def no_temperature(model: onnx.ModelProto, step: int) -> None:
    heat = next(node for node in nodes(model, "Div") if node.output[0] == nodes(model, "Exp")[step].input[0])
    heat.input[1] = constant(model, "no.temperature", np.ones(1, np.float32))


def no_top_k(model: onnx.ModelProto, step: int) -> None:
    nodes(model, "Less")[0].input[1] = constant(model, "any.rank", np.array([[1 << 20]]))


def nothing_forced(model: onnx.ModelProto, step: int) -> None:
    choice = next(node for node in nodes(model, "Where") if node.output[0] == "text_token")
    choice.input[1] = choice.input[2]


def nothing_replaced(model: onnx.ModelProto, step: int) -> None:
    choice = next(node for node in nodes(model, "Where") if node.output[0] == "text_token")
    choice.input[2] = "draw"


def another_draw(model: onnx.ModelProto, step: int) -> None:
    """The output `draw` is the token after replacing."""
    choice = next(node for node in nodes(model, "Where") if node.output[0] == "text_token")
    (drawn,) = (node for node in model.graph.node if "draw" in node.output)
    drawn.output[0] = "own.draw"
    for node in model.graph.node:
        node.input[:] = ["own.draw" if name == "draw" else name for name in node.input]
    model.graph.node.append(onnx.helper.make_node("Identity", [choice.input[2]], ["draw"]))


FAULTS: dict[str, tuple[str, Callable[[onnx.ModelProto, int], None], int, str]] = {
    "text noise": ("temporal", no_noise, 0, "text"),
    "audio noise": ("depth", no_noise, 3, "codebook 3"),
    "text temperature": ("temporal", no_temperature, 0, "text"),
    "audio temperature": ("depth", no_temperature, 5, "codebook 5"),
    "text top-k": ("temporal", no_top_k, 0, "text"),
    "forced text": ("temporal", nothing_forced, 0, "text"),
    "replaced text": ("temporal", nothing_replaced, 0, "text"),
    "draw": ("temporal", another_draw, 0, "text"),
}


def test_a_correct_bundle_draws_every_token_correctly(tiny_bundle: Bundle) -> None:
    found = measure(tiny_bundle)
    assert found.passed and found.value == 0 and found.where == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sampling_fault_is_named_by_its_stream(tiny_bundle: Bundle, tmp_path: Path, fault: str) -> None:
    graph, plant, step, stream = FAULTS[fault]
    found = measure(broken(tiny_bundle, graph, lambda model: plant(model, step), tmp_path))
    assert not found.passed and found.where.partition(":")[0] == stream and "," not in found.where


def test_section_leaves_the_slot_as_new(tiny_bundle: Bundle) -> None:
    stages, new = Stages(tiny_bundle, 1, logits=True), Stages(tiny_bundle, 1, logits=True)
    sampling_measure(stages, CODES, 3)
    for name in (
        "noise_offset",
        "noise_stride",
        "text_temperature",
        "audio_temperature",
        "text_top_k",
        "audio_top_k",
        "replacement",
    ):
        np.testing.assert_array_equal(getattr(stages, name), getattr(new, name))


@given(st.integers(0, 1 << 32), st.floats(0.1, 2), st.integers(1, 40))
def test_tokens_of_the_torch_module_count_as_drawable(seed: int, temperature: float, top_k: int) -> None:
    draws = np.random.default_rng(seed)
    logits = np.round(4 * draws.standard_normal(60)).astype(np.float32)  # with ties
    noise = draws.standard_exponential(64).astype(np.float32)
    settings = (
        (from_numpy(noise[None]), tensor([[0]]), tensor([[1]])),
        tensor([temperature]),
        tensor([top_k]),
    )
    token, noise = int(sample(from_numpy(logits[None]), *settings)[0]), noise[:60]
    assert may_be_drawn(logits, noise, temperature, top_k, -1, token)
    least = int(logits.argmin())
    assert not may_be_drawn(logits, noise, temperature, top_k, -1, least) or logits[least] == logits[token]
    assert may_be_drawn(logits, noise, temperature, top_k, 5, 5) and not may_be_drawn(logits, noise, 1, 1, 5, 6)
