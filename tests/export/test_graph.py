"""The exported files keep the graphs' contract and hold nothing but standard ONNX."""

import onnx
import pytest

from pplex.runtime.bundle import Bundle
from pplex.runtime.graphs import TensorSpec, graph_specs
from pplex.runtime.pipeline import GRAPH_NAMES

each_graph = pytest.mark.parametrize("graph", GRAPH_NAMES)


def described(values: list[onnx.ValueInfoProto]) -> list[TensorSpec]:
    result = []
    for value in values:
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        result.append(TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, dims))
    return result


@each_graph
def test_names_dtypes_and_axes_equal_the_spec(tiny_bundle: Bundle, graph: str) -> None:
    spec = graph_specs(tiny_bundle.config)[graph]
    model = onnx.load(tiny_bundle.graph_path(graph), load_external_data=False)
    assert tuple(described(model.graph.input)) == spec.all_inputs
    assert tuple(described(model.graph.output)) == spec.all_outputs


@each_graph
def test_only_standard_ops_of_opset_24(tiny_bundle: Bundle, graph: str) -> None:
    model = onnx.load(tiny_bundle.graph_path(graph), load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import if opset.domain == ""] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    onnx.checker.check_model(str(tiny_bundle.graph_path(graph)), full_check=True)


@each_graph
def test_rings_are_written_by_one_node_each(tiny_bundle: Bundle, graph: str) -> None:
    model = onnx.load(tiny_bundle.graph_path(graph), load_external_data=False)
    rings = [state for state in graph_specs(tiny_bundle.config)[graph].state if state.ring]
    writes = {(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "TensorScatter"}
    assert writes == {(ring.past, ring.present) for ring in rings}


@each_graph
def test_graph_holds_no_source_paths(tiny_bundle: Bundle, graph: str) -> None:
    content = tiny_bundle.graph_path(graph).read_bytes()
    assert b"site-packages" not in content and b".py" not in content
