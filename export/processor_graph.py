"""The form of a graph with int8 rings for processors: attention that reads the rings as they are. Called by `export.build`.

ONNX's Attention takes no int8, so the graph casts a whole ring before each attention. On a processor that takes longer than
the attention itself. ONNX Runtime's own operator GroupQueryAttention reads int8, and computes in float32:

    past.k -> TensorScatter -> Cast -> Attention                             the graph
    past.k -> TensorScatter -> written.k -> GroupQueryAttention -> present.k   its form for processors

The operator can append new keys itself, but not at an entry in the middle of a ring. So it gets no new keys, and returns the
rings as they are. All three names of a ring are bound to one address: nothing is copied.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pplex.runtime.config import TransformerConfig

_DOMAIN, _VERSION = "com.microsoft", 1
_LENGTHS = 6  # input of ONNX's Attention
# Names of values that all attentions share.
_SEQUENCE, _TOTAL, _ONE, _FLAT, _SPLIT, _START, _AXIS = (
    f"processor.{name}" for name in ("lengths", "longest", "one", "flat", "split", "start", "axis")
)


def write_processor_graph(path: Path, stack: TransformerConfig, out: Path) -> None:
    """Write the form of the graph `path` to `out`, in the same folder: both use the same weights."""
    model = ir.load(path)
    found = [node for node in model.graph if node.op_type == "Attention"]
    assert len(found) == stack.layers, [node.name for node in found]
    model.graph.opset_imports[_DOMAIN] = _VERSION
    _add_constants(model.graph, stack)
    lengths = found[0].inputs[_LENGTHS]
    assert lengths is not None
    model.graph.insert_before(found[0], _counts(lengths))
    shared = {str(value.name): value for node in model.graph for value in node.outputs}
    shared |= {str(name): value for name, value in model.graph.initializers.items()}
    for node in found:
        _replace(model.graph, node, shared, stack.heads)
    ir.save(model, out)


def _add_constants(graph: ir.Graph, stack: TransformerConfig) -> None:
    integers = {_FLAT: [0, 0, -1], _SPLIT: [0, 0, stack.heads, stack.head_dim], _START: [0], _AXIS: [1]}
    arrays: dict[str, npt.NDArray[Any]] = {name: np.array(values, np.int64) for name, values in integers.items()}
    for name, array in {**arrays, _ONE: np.ones(1, np.float32)}.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.initializers.add(value)


def _counts(lengths: ir.Value) -> list[ir.Node]:
    """What the operator takes in place of `lengths` [B] int64: each one less 1, and the longest, in int32."""
    one = ir.node("Constant", [], attributes={"value_int": 1})
    less = _named(ir.node("Sub", [lengths, one.outputs[0]]), f"{_SEQUENCE}.less", ir.DataType.INT64, ("B",))
    longest = _named(
        ir.node("ReduceMax", [lengths], attributes={"keepdims": 0}), f"{_TOTAL}.long", ir.DataType.INT64, ()
    )
    casts = (
        _named(_cast(less.outputs[0], ir.DataType.INT32), _SEQUENCE, ir.DataType.INT32, ("B",)),
        _named(_cast(longest.outputs[0], ir.DataType.INT32), _TOTAL, ir.DataType.INT32, ()),
    )
    return [_named(one, f"{_SEQUENCE}.one", ir.DataType.INT64, ()), less, longest, *casts]


def _replace(graph: ir.Graph, attention: ir.Node, shared: Mapping[str, ir.Value], heads: int) -> None:
    q, *casts = attention.inputs[:3]
    assert q is not None and q.dtype is not None
    rings = [_written(cast) for cast in casts]
    before = _query(q, q.dtype, shared)
    flat, none = (node.outputs[0] for node in before[1:])
    read = _reading(attention, [flat, none, none, *rings], shared, heads)
    _named(read, f"{attention.outputs[0].name}.flat", q.dtype)
    _return_rings(graph, rings, read)
    after = _result(read.outputs[0], attention.outputs[0], q.dtype, shared)
    graph.insert_before(attention, [*before, read, *after])
    makers = [cast.producer() for cast in casts if cast is not None]
    graph.remove([attention, *(maker for maker in makers if maker is not None)], safe=True)


def _query(q: ir.Value, dtype: ir.DataType, shared: Mapping[str, ir.Value]) -> list[ir.Node]:
    """q as the operator takes it, [B, T, H * D], and in the same layout no keys at all, [B, 0, H * D]."""
    swapped = _named(_swap(q), f"{q.name}.by_step", dtype)
    flat = _named(ir.node("Reshape", [swapped.outputs[0], shared[_FLAT]]), f"{q.name}.flat", dtype)
    nothing = [flat.outputs[0], shared[_START], shared[_START], shared[_AXIS]]
    return [swapped, flat, _named(ir.node("Slice", nothing), f"{q.name}.none", dtype)]


def _reading(attention: ir.Node, inputs: Sequence[ir.Value], shared: Mapping[str, ir.Value], heads: int) -> ir.Node:
    """The operator, for query, key, value and rings. Its scales are 1: the graph has ours in query and result."""
    attributes = {"num_heads": heads, "kv_num_heads": heads, "kv_cache_bit_width": 8}
    kinds = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
    unused = [None] * 5  # for rotation, positions, a bias and a sink
    counts, scales = (shared[_SEQUENCE], shared[_TOTAL]), (shared[_ONE], shared[_ONE])
    return ir.Node(
        _DOMAIN,
        "GroupQueryAttention",
        [*inputs, *counts, *unused, *scales],
        ir.convenience.convert_attributes({**attributes, **kinds}),
        num_outputs=3,
        name=attention.name,
    )


def _return_rings(graph: ir.Graph, rings: Sequence[ir.Value], read: ir.Node) -> None:
    """Make the operator's rings the graph's outputs in place of the written ones, which become outputs at the end."""
    for ring, present in zip(rings, read.outputs[1:], strict=True):
        present.name, present.shape, present.type = str(ring.name).replace("written", "present"), ring.shape, ring.type
        graph.outputs[list(graph.outputs).index(ring)] = present
        graph.outputs.append(ring)


def _result(flat: ir.Value, y: ir.Value, dtype: ir.DataType, shared: Mapping[str, ir.Value]) -> list[ir.Node]:
    """The operator's result in the layout of `y`, [B, H, T, D], and in its place."""
    split = _named(ir.node("Reshape", [flat, shared[_SPLIT]]), f"{y.name}.by_step", dtype)
    back = _swap(split.outputs[0])
    for user, index in tuple(y.uses()):
        user.replace_input_with(index, back.outputs[0])
    back.outputs[0].shape = y.shape
    return [split, _named(back, f"{y.name}.read", dtype)]


def _written(values: ir.Value | None) -> ir.Value:
    """The ring that a Cast reads, under its new name."""
    cast = None if values is None else values.producer()
    assert cast is not None and cast.op_type == "Cast", values
    ring = cast.inputs[0]
    assert ring is not None and ring.name is not None and ring.name.startswith("present.")
    ring.name = ring.name.replace("present", "written")
    return ring


def _swap(x: ir.Value) -> ir.Node:
    """[B, H, T, D] to [B, T, H, D], or back."""
    return ir.node("Transpose", [x], attributes={"perm": [0, 2, 1, 3]})


def _cast(x: ir.Value, dtype: ir.DataType) -> ir.Node:
    return ir.node("Cast", [x], attributes={"to": int(dtype)})


def _named(node: ir.Node, name: str, dtype: ir.DataType, shape: Sequence[int | str] | None = None) -> ir.Node:
    output = node.outputs[0]
    output.name, output.type = name, ir.TensorType(dtype)
    if shape is not None:
        output.shape = ir.Shape(shape)
    return node
