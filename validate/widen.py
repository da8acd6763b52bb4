"""Rewrites a bfloat16 graph for ONNX Runtime's CPU provider, which can store bfloat16 but not compute in it.

Each operation runs in float32 and its result is rounded to bfloat16, like hardware that accumulates in float32. Inputs and
outputs are float32. `validate.validation` uses it to measure the error of bfloat16 on the processor; a GPU runs the original
graph.
"""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from pplex.runtime.bundle import Bundle

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
_MOVES = {"Cast", "Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "TensorScatter", "Transpose", "Unsqueeze"}


def widen_bundle(bundle: Bundle) -> Bundle:
    """Rewrite the bundle's bfloat16 graphs in place. Its manifest's sizes and hashes are then wrong."""
    narrow = [graph for graph, name in bundle.precision.items() if name == "bf16"]
    for graph in narrow:
        widen(bundle.graph_path(graph))
    return replace(bundle, precision={**bundle.precision, **dict.fromkeys(narrow, "fp32")})


def widen(path: Path) -> None:
    """Rewrite the graph file in place; its weight file stays."""
    model = ir.load(path)
    for node in tuple(model.graph):
        if node.op_type not in _MOVES:
            _compute_wide(node)
    for value in tuple(model.graph.inputs):
        if value.dtype == _NARROW:
            value.type = ir.TensorType(_WIDE)
            users = tuple(value.uses())
            model.graph.insert_before(model.graph[0], cast := _cast(value, _NARROW))
            for user, index in users:
                user.replace_input_with(index, cast.outputs[0])
    for i, value in enumerate(model.graph.outputs):
        if value.dtype == _NARROW:
            name, value.name = value.name, f"{value.name}.narrow"
            model.graph.append(cast := _cast(value, _WIDE))
            cast.outputs[0].name, model.graph.outputs[i] = name, cast.outputs[0]
    ir.save(model, path)


def _compute_wide(node: ir.Node) -> None:
    graph = node.graph
    assert graph is not None
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype == _NARROW:
            graph.insert_before(node, cast := _cast(value, _WIDE))
            node.replace_input_with(i, cast.outputs[0])
    for value in node.outputs:
        if value.dtype == _NARROW:
            users = tuple(value.uses())
            value.type = ir.TensorType(_WIDE)
            graph.insert_after(node, cast := _cast(value, _NARROW))
            for user, index in users:
                user.replace_input_with(index, cast.outputs[0])


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": int(dtype)})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
