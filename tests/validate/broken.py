"""Bundles with one planted fault in a graph's file, which a validation must find and name."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pplex.runtime.bundle import Bundle

Fault = Callable[[onnx.ModelProto], None]


def broken(bundle: Bundle, graph: str, fault: Fault, folder: Path) -> Bundle:
    """The bundle with a copy of one graph that has the fault; the other files are copied."""
    for path in bundle.folder.iterdir():
        if not path.name.startswith(f"{graph}."):
            shutil.copy(path, folder)
    model = onnx.load(bundle.graph_path(graph))
    fault(model)
    onnx.save(model, folder / f"{graph}.onnx")
    return replace(bundle, folder=folder)


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def add_node(model: onnx.ModelProto, before: onnx.NodeProto, kind: str, inputs: list[str], output: str) -> str:
    """A new node in front of another, for its output's name."""
    place = list(model.graph.node).index(before)
    model.graph.node.insert(place, onnx.helper.make_node(kind, inputs, [output]))
    return output


def constant(model: onnx.ModelProto, name: str, value: npt.ArrayLike) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def changed(name: str, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> Fault:
    """Change one weight."""

    def fault(model: onnx.ModelProto) -> None:
        tensor = weight(model, name)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name))

    return fault


def swapped(first: str, second: str) -> Fault:
    """Swap two weights."""

    def fault(model: onnx.ModelProto) -> None:
        tensors = weight(model, first), weight(model, second)
        tensors[0].name, tensors[1].name = second, first

    return fault


def without_lengths(layer: int) -> Fault:
    """Attention reads ring entries that it must not see."""

    def fault(model: onnx.ModelProto) -> None:
        node = nodes(model, "Attention")[layer]
        del node.input[3:], node.attribute[:]

    return fault


def ring_index(model: onnx.ModelProto) -> onnx.NodeProto:
    """The node that computes which entry of the rings is written: Mod of the position and the number of entries in use."""
    written = nodes(model, "TensorScatter")[0].input[2]
    return next(node for node in nodes(model, "Mod") if written in node.output)


def ring_off_by_one(layer: int) -> Fault:
    """A layer's keys are written one entry further than they are read."""

    def fault(model: onnx.ModelProto) -> None:
        write = nodes(model, "TensorScatter")[2 * layer]
        in_use = ring_index(model).input[1]
        moved = add_node(model, write, "Add", [write.input[2], constant(model, "one", 1)], "moved")
        write.input[2] = add_node(model, write, "Mod", [moved, in_use], "wrapped")

    return fault


def window_longer_by(steps: int) -> Fault:
    """A ring has more entries in use, or fewer. (With one more, a step reads what the reference hides.)"""

    def fault(model: onnx.ModelProto) -> None:
        index = ring_index(model)
        in_use = index.input[1]
        longer = add_node(model, index, "Add", [in_use, constant(model, "more", steps)], "longer")
        for node in (index, *nodes(model, "Min")):
            node.input[:] = [longer if name == in_use else name for name in node.input]

    return fault


def halves_rotated(layer: int) -> Fault:
    """RoPE rotates pairs (i, i + D/2) instead of (2i, 2i + 1), in the queries and keys of a layer."""

    def fault(model: onnx.ModelProto) -> None:
        node = nodes(model, "RotaryEmbedding")[layer]
        next(a for a in node.attribute if a.name == "interleaved").i = 0

    return fault
