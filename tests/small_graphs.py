"""Small ONNX graphs for tests: mutated copies of a bundle's, and multilayer perceptrons in every weight format."""

import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.graphs import GraphSpec, StateSpec, TensorSpec

DIM = 512
MLP = GraphSpec("mlp", (TensorSpec("x", "float16", ("B", "T", DIM)),), (TensorSpec("y", "float16", ("B", "T", DIM)),))
_BLOCK = 32


def mutated(bundle: Bundle, folder: Path, graph: str, change: Callable[[onnx.GraphProto], None]) -> Path:
    """A copy of a bundle's graph in `folder` with its weights, after `change`."""
    path = bundle.graph_path(graph)
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    shutil.copyfile(path.with_suffix(".data"), folder / f"{graph}.data")
    onnx.save(model, folder / path.name)
    return folder / path.name


def nodes(graph: onnx.GraphProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op_type]


def insert_before(graph: onnx.GraphProto, reader: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    """Insert nodes after their inputs and before `reader`."""
    at = list(graph.node).index(reader)
    for i, node in enumerate(new):
        graph.node.insert(at + i, node)


def write_mlp(path: Path, weights: str, layers: int = 4) -> int:
    """Write an MLP, relu(x @ w) times `layers`, with square weights in a format; returns their bytes with scales.

    int8 has one scale for each column, "int8 in blocks" and int4 one for each block of 32, "int4/64" and "int4/128" one for
    each of theirs. Several formats, with spaces between them, are for the layers in turn. Nodes have the exporter's names.
    """
    formats = [weights] if weights == "int8 in blocks" else weights.split()
    made = [_layer(i, formats[i % len(formats)]) for i in range(layers)]
    steps = [node for of_layer, _ in made for node in of_layer] + [helper.make_node("Identity", [f"x{layers}"], ["y"])]
    return write_graph(path, MLP, steps, [tensor for _, of_layer in made for tensor in of_layer])


def write_attention(path: Path, dtype: str, masked: bool) -> GraphSpec:
    """One layer's attention of the released model over rings of C steps, as in a graph for engines, or for ONNX Runtime."""
    heads, dim = RELEASED.temporal.heads, RELEASED.temporal.head_dim
    rows = [TensorSpec(name, dtype, ("B", heads, "T", dim)) for name in "qkvy"]
    index, lengths = (TensorSpec(name, "int64", ("B",)) for name in ("index", "lengths"))
    masks = [TensorSpec("mask", "bool", ("B", 1, "T", "C"))] if masked else []
    rings = tuple(StateSpec(f"{name}.0", dtype, ("B", heads, "C", dim), ring=True) for name in "kv")
    spec = GraphSpec("attention", (*rows[:3], index, lengths, *masks), (rows[3],), rings)
    writes = [
        helper.make_node(
            "TensorScatter", [s.past, s.name[0], "index"], [s.present], name=f"write.{s.name}", axis=2, mode="linear"
        )
        for s in rings
    ]
    read = ["q", "present.k.0", "present.v.0", "mask" if masked else "", "", "", "lengths"]
    attend = helper.make_node("Attention", read, ["y"], name="attend", is_causal=int(not masked))
    write_graph(path, spec, [*writes, attend], [])
    return spec


def write_graph(path: Path, spec: GraphSpec, steps: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> int:
    """Write a graph of these nodes that keeps the contract `spec`; returns the bytes of its weights."""
    inputs, outputs = ([_value(tensor) for tensor in tensors] for tensors in (spec.all_inputs, spec.all_outputs))
    graph = helper.make_graph(steps, spec.name, inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    return sum(len(tensor.raw_data) for tensor in weights)


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
    )


def _layer(i: int, weights: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    x, w, used = "x" if i == 0 else f"x{i}", f"w{i}", f"w{i}.float"
    weights, _, size = weights.partition("/")
    block = int(size or _BLOCK)
    tensors, before = [_weight(w, weights, i)], []
    if weights == "float16":
        used = w
    elif weights == "float8_e4m3fn":
        tensors += [_scale(f"{w}.scale", (DIM,), i), _scale(f"{w}.x_scale", (), i), _zero(f"{w}.x_zero")]
        before = [
            helper.make_node("DequantizeLinear", [w, f"{w}.scale"], [used], name=f"dequantize.{w}", axis=1),
            helper.make_node("QuantizeLinear", [x, f"{w}.x_scale", f"{w}.x_zero"], [f"{x}.q"]),
            helper.make_node("DequantizeLinear", [f"{x}.q", f"{w}.x_scale"], [f"{x}.f"]),
        ]
        x = f"{x}.f"
    else:
        in_blocks = weights != "int8"
        tensors.append(_scale(f"{w}.scale", (DIM // block, DIM) if in_blocks else (DIM,), i))
        axes = {"axis": 0, "block_size": block} if in_blocks else {"axis": 1}
        before = [helper.make_node("DequantizeLinear", [w, f"{w}.scale"], [used], name=f"dequantize.{w}", **axes)]
    product = helper.make_node("MatMul", [x, used], [f"product{i}"])
    return [*before, product, helper.make_node("Relu", [f"product{i}"], [f"x{i + 1}"])], tensors


def _weight(name: str, dtype: str, seed: int) -> onnx.TensorProto:
    """Random weights [DIM, DIM], different for each seed: TensorRT stores equal weights once."""
    values = np.random.default_rng(seed).integers(-7, 8, (DIM, DIM)).astype(np.int8)
    if dtype == "int4":
        packed = (values[:, ::2] & 15) | (values[:, 1::2] << 4)
        return helper.make_tensor(name, TensorProto.INT4, (DIM, DIM), packed.astype(np.uint8).tobytes(), raw=True)
    if dtype == "float8_e4m3fn":
        return numpy_helper.from_array(values.astype(ml_dtypes.float8_e4m3fn), name)
    return numpy_helper.from_array(values.astype(dtype.removesuffix(" in blocks")), name)


def _scale(name: str, shape: tuple[int, ...], seed: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(shape, 0.01 * (seed + 1), np.float16), name)


def _zero(name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e4m3fn), name)
