"""Faults that appear only in chunks, restored state, or slots other than the first."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import Fault, add_node, broken, constant, nodes
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.validate.report.schema import Measure
from pplex.validate.sections.streaming import batch_measures, state_measures

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
PIECES = unheard_pieces(CHECKPOINT.config, 2)
CODES, PCM = token_history(CHECKPOINT, PIECES, 90), PIECES.reshape(-1, 1920)


def measures(bundle: Bundle) -> dict[str, Measure]:
    found = [*state_measures(bundle, CHECKPOINT, Stages(bundle, 4, logits=True), CODES, PCM)]
    return {m.name: m for m in [*found, *batch_measures(Runtime(bundle, 4, batches=[4]), PCM)]}


def failed(bundle: Bundle) -> list[str]:
    return [name for name, measure in measures(bundle).items() if not measure.passed]


def test_a_correct_bundle_passes_and_every_measure_has_a_limit(tiny_bundle: Bundle) -> None:
    found = measures(tiny_bundle)
    assert [*found] == [
        "streaming.chunked", "streaming.restored", "streaming.rows", "streaming.batch_tokens", "streaming.batch_audio",
    ]  # fmt: skip
    assert all(measure.tolerance is not None and measure.passed for measure in found.values())
    assert found["streaming.restored"].value == 0


def every_step_at_the_first_ones_place(model: onnx.ModelProto) -> None:
    """All steps of a chunk are rotated like its first one; single steps are correct."""
    for kind in ("Cos", "Sin"):
        (node,) = nodes(model, kind)
        first = constant(model, f"first.{kind}", np.array([0])), constant(model, f"axis.{kind}", np.array([1]))
        angle = add_node(model, node, "Gather", [node.input[0], first[0]], f"angle.{kind}")
        model.graph.node[[*model.graph.node].index(node) - 1].attribute.append(onnx.helper.make_attribute("axis", 1))
        shape = add_node(model, node, "Shape", [node.input[0]], f"shape.{kind}")
        node.input[0] = add_node(model, node, "Expand", [angle, shape], f"all.{kind}")


def noise_of_all_slots(model: onnx.ModelProto) -> None:
    """Every slot samples with the mean noise of all slots."""
    reader = next(node for node in model.graph.node if "noise" in node.input)
    index = [*reader.input].index("noise")
    axes = constant(model, "batch.axis", np.array([0]))
    mean = add_node(model, reader, "ReduceMean", ["noise", axes], "mean.noise")
    zeros = add_node(model, reader, "Sub", ["noise", "noise"], "no.noise")
    reader.input[index] = add_node(model, reader, "Add", [mean, zeros], "shared.noise")


def speaks_louder_in_company(model: onnx.ModelProto) -> None:
    """A slot's audio is multiplied by the number of slots."""
    last = next(node for node in model.graph.node if "pcm" in node.output)
    last.output[[*last.output].index("pcm")] = "pcm.alone"
    inputs = constant(model, "first", np.array([0])), constant(model, "end", np.array([1]))
    shape = onnx.helper.make_node("Shape", ["pcm.alone"], ["pcm.shape"])
    batch = onnx.helper.make_node("Slice", ["pcm.shape", *inputs], ["pcm.batch"])
    count = onnx.helper.make_node("Cast", ["pcm.batch"], ["pcm.count"], to=onnx.TensorProto.FLOAT)
    model.graph.node.extend([shape, batch, count, onnx.helper.make_node("Mul", ["pcm.alone", "pcm.count"], ["pcm"])])


def hidden_of_the_last_slot(model: onnx.ModelProto) -> None:
    """The hidden state is wrong from the fourth slot on."""
    maker = next(node for node in model.graph.node if "hidden" in node.output)
    maker.output[[*maker.output].index("hidden")] = "hidden.right"
    for node in model.graph.node:
        node.input[:] = ["hidden.right" if name == "hidden" else name for name in node.input]
    start, end, axis = (
        constant(model, f"row.{name}", np.array([value])) for name, value in (("a", 3), ("b", 999), ("c", 0))
    )
    first = constant(model, "row.first", np.array([0]))
    nodes = [
        onnx.helper.make_node("Slice", ["hidden.right", first, start, axis], ["hidden.sound"]),
        onnx.helper.make_node("Slice", ["hidden.right", start, end, axis], ["hidden.late"]),
        onnx.helper.make_node("Neg", ["hidden.late"], ["hidden.wrong"]),
        onnx.helper.make_node("Concat", ["hidden.sound", "hidden.wrong"], ["hidden"], axis=0),
    ]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize(
    "graph, fault, found",
    [
        ("temporal", every_step_at_the_first_ones_place, ["streaming.chunked"]),
        ("temporal", noise_of_all_slots, ["streaming.batch_tokens", "streaming.batch_audio"]),
        ("mimi_decode", speaks_louder_in_company, ["streaming.rows"]),
        ("temporal", hidden_of_the_last_slot, ["streaming.rows", "streaming.batch_tokens", "streaming.batch_audio"]),
    ],
)
def test_a_fault_in_chunks_or_batches_is_found(
    tiny_bundle: Bundle, tmp_path: Path, graph: str, fault: Fault, found: list[str]
) -> None:
    assert failed(broken(tiny_bundle, graph, fault, tmp_path)) == found
