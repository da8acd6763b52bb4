"""Parts that TensorRT's parser drops without an error are found before the build.

Each test changes one place of a graph of the tiny bundle. The parser accepts every change.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import insert_before, mutated, nodes

from pplex.engines import network
from pplex.engines.library import open_library
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import BuildError
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.pipeline import GRAPH_NAMES

trt: Any = pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")

Change = Callable[[onnx.GraphProto], None]


class Parsed:
    """A graph parsed by TensorRT-RTX, to compare with its spec."""

    def __init__(self, bundle: Bundle, graph: str, path: Path, limited: bool = True):
        self.spec, self.library = bundle.specs[graph], open_library(parse_gpu("rtx-4090"))
        self.builder, self.logger = None, trt.Logger(trt.ILogger.INTERNAL_ERROR)
        self.builder = trt.Builder(self.logger)
        self.network, self.model = network.parse(self.library, self.builder, self.logger, path, 96)
        if limited:
            network.limit_attention(trt, self.network, self.model)

    def problems(self) -> list[str]:
        try:
            network.check_network(self.library, self.network, self.model, self.spec, 96)
        except BuildError as error:
            return str(error).split("\n  ")[1:]
        return []


@pytest.fixture
def problems(engine_bundle: Bundle, tmp_path: Path) -> Iterator[Callable[[str, Change], list[str]]]:
    """The problems of a graph after a change."""
    yield lambda graph, change: Parsed(engine_bundle, graph, mutated(engine_bundle, tmp_path, graph, change)).problems()


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_exported_graphs_have_no_problems(engine_bundle: Bundle, graph: str) -> None:
    parsed = Parsed(engine_bundle, graph, engine_bundle.graph_path(graph))
    assert parsed.problems() == []
    assert len(network.attentions(trt, parsed.network)) == len(nodes(parsed.model.graph, "Attention")) > 0


def test_attention_over_a_ring_stops_at_its_lengths(engine_bundle: Bundle) -> None:
    parsed = Parsed(engine_bundle, "temporal", engine_bundle.graph_path("temporal"))
    lengths = {attention.key_value_lengths.name for attention in network.attentions(trt, parsed.network).values()}
    assert len(lengths) == 1  # one conversion for all layers


def test_lost_attention_lengths_are_reported(engine_bundle: Bundle) -> None:
    parsed = Parsed(engine_bundle, "temporal", engine_bundle.graph_path("temporal"))
    next(iter(network.attentions(trt, parsed.network).values())).key_value_lengths = None
    (problem,) = parsed.problems()
    assert "lost its lengths" in problem


def test_a_library_without_lengths_keeps_the_mask(engine_bundle: Bundle) -> None:
    """TensorRT's attention may have none. The mask gives the same result."""
    parsed = Parsed(engine_bundle, "temporal", engine_bundle.graph_path("temporal"), limited=False)
    attention = next(iter(network.attentions(trt, parsed.network).values()))
    older = SimpleNamespace(IAttention=object)
    network.limit_attention(older, parsed.network, parsed.model)
    assert attention.key_value_lengths is None and attention.mask is not None


def test_an_unread_input_is_reported(problems: Any) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["text_top_k" if name == "forced_text" else name for name in node.input]

    assert problems("temporal", change) == ["the input forced_text is ignored"]


def drop_a_mask(graph: onnx.GraphProto) -> None:
    nodes(graph, "Attention")[1].input[3] = ""


def test_a_mask_missing_from_the_graph_is_reported(problems: Any) -> None:
    (problem,) = problems("temporal", drop_a_mask)
    assert problem.endswith("has no mask, and would read ring entries that were never written")


def test_a_mask_missing_from_the_network_is_reported(engine_bundle: Bundle, tmp_path: Path) -> None:
    """No known graph loses its mask in the parser, so a network without a mask is compared with a graph that has one."""
    path = engine_bundle.graph_path("temporal")
    parsed = Parsed(engine_bundle, "temporal", mutated(engine_bundle, tmp_path, "temporal", drop_a_mask))
    parsed.model = onnx.load(path, load_external_data=False)
    (problem,) = parsed.problems()
    assert "lost its mask" in problem


def test_a_mask_that_is_not_boolean_is_reported(problems: Any) -> None:
    def change(graph: onnx.GraphProto) -> None:
        attention = nodes(graph, "Attention")[0]
        cast = helper.make_node("Cast", [attention.input[3]], ["numbers"], name="to_numbers", to=TensorProto.FLOAT)
        insert_before(graph, attention, cast)
        attention.input[3] = "numbers"

    (problem,) = problems("temporal", change)
    assert problem.endswith("is FLOAT, not BOOL")


def test_a_mask_shorter_than_the_ring_is_reported(problems: Any) -> None:
    def change(graph: onnx.GraphProto) -> None:
        attention = nodes(graph, "Attention")[0]
        ends = {name: [value] for name, value in (("from", 0), ("to", 1), ("along", 3))}
        graph.initializer.extend(
            helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in ends.items()
        )
        insert_before(graph, attention, helper.make_node("Slice", [attention.input[3], *ends], ["short"], name="cut"))
        attention.input[3] = "short"

    (problem,) = problems("temporal", change)
    assert problem.endswith("is [-1, 1, -1, 1], and its keys are [-1, 2, 96, 16]")


@pytest.mark.parametrize("graph", ["temporal", "mimi_encode"])
def test_a_ring_not_written_in_place_is_reported(problems: Any, graph: str) -> None:
    def change(model: onnx.GraphProto) -> None:
        (write,) = [node for node in nodes(model, "TensorScatter") if node.output[0] == "present.k.0"]
        write.output[0] = "ring"
        for node in model.node:
            node.input[:] = ["ring" if name == "present.k.0" else name for name in node.input]
        model.node.append(helper.make_node("Identity", ["ring"], ["present.k.0"], name="copy"))

    assert problems(graph, change) == ["present.k.0 does not come from a KV cache layer but from IDENTITY"]


def test_swapped_rings_are_reported(problems: Any) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "TensorScatter"):
            swapped = {"past.k.0": "past.v.0", "past.v.0": "past.k.0"}
            node.input[0] = swapped.get(node.input[0], node.input[0])

    assert problems("temporal", change) == [
        "present.k.0 is an update of past.v.0, not of past.k.0",
        "present.v.0 is an update of past.k.0, not of past.v.0",
    ]


def test_a_missing_carried_state_is_reported(problems: Any) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.output.remove(next(value for value in graph.output if value.name == "present.position"))

    assert problems("mimi_decode", change) == ["the output present.position is missing"]


def test_outputs_of_another_dtype_or_name_are_reported(problems: Any) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for value in graph.output:
            if value.name == "text_token":
                maker = next(node for node in graph.node if "text_token" in node.output)
                maker.output[0] = "wide_token"
                graph.node.append(
                    helper.make_node("Cast", ["wide_token"], ["text_token"], name="narrow", to=TensorProto.INT32)
                )
                value.type.tensor_type.elem_type = TensorProto.INT32
        graph.output.append(helper.make_tensor_value_info("wide_token", TensorProto.INT64, ["B"]))

    assert problems("temporal", change) == [
        "the output text_token is INT32 [-1], not INT64 [-1]",
        "the output wide_token is not part of the graph's contract",
    ]


def test_another_capacity_than_the_specs_is_reported(engine_bundle: Bundle) -> None:
    parsed = Parsed(engine_bundle, "temporal", engine_bundle.graph_path("temporal"))
    with pytest.raises(BuildError, match=r"past.k.0 is FLOAT \[-1, 2, 96, 16\], not FLOAT \[-1, 2, 64, 16\]"):
        network.check_network(parsed.library, parsed.network, parsed.model, parsed.spec, 64)
