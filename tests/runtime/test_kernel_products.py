"""What of a product's surroundings it takes over, and that the graph computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from block_products import Product
from onnx import helper, numpy_helper

from pplex import kernels
from pplex.runtime.kernel_graph import pack_graph

compiled = pytest.mark.skipif(kernels.compiled() is None, reason="our kernels were not compiled: apt-get install g++")

Nodes = dict[str, Any]


class Block:
    """A feed-forward block as ONNX Runtime optimises it: x + out(gate(in(norm(x)))). `change` changes its nodes."""

    WIDTH, HIDDEN = 64, 96

    def __init__(self, folder: Path, change: Callable[[Nodes], None] = lambda nodes: None):
        self.path, self.weights, self._out = folder / "graph.onnx", folder / "graph.data", folder / "out.onnx"
        first, second = Product(self.WIDTH, 2 * self.HIDDEN, 32), Product(self.HIDDEN, self.WIDTH, 32, bits=8)
        constants = {
            "norm": np.linspace(0.5, 1.5, self.WIDTH, dtype=np.float32),
            "bias": np.ones(self.WIDTH, np.float32),
        }
        nodes = {
            "before": helper.make_node("Identity", ["x"], ["stream"]),
            "norm": helper.make_node("RMSNormalization", ["stream", "norm"], ["normed"], axis=-1, epsilon=1e-8),
            "in": self._product(first, "normed", "both", constants),
            "split": helper.make_node("Split", ["both"], ["gate", "value"], axis=-1, num_outputs=2),
            "gelu": helper.make_node("QuickGelu", ["gate"], ["silu"], domain="com.microsoft", alpha=1.0),
            "mul": helper.make_node("Mul", ["silu", "value"], ["hidden"]),
            "out": self._product(second, "hidden", "change", constants),
            "add": helper.make_node("Add", ["stream", "change"], ["y"]),
        }
        change(nodes)
        shape = helper.make_tensor_value_info
        graph = helper.make_graph(
            list(nodes.values()),
            "block",
            [shape("x", 1, ["B", 1, self.WIDTH])],
            [shape("y", 1, None)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        external = {"save_as_external_data": True, "location": self.weights.name, "size_threshold": 100}
        onnx.save(model, self.path, **external)
        pack_graph(self.path, self.weights, self._out, "out.data", "out.packed")

    @staticmethod
    def _product(product: Product, x: str, y: str, constants: dict[str, Any]) -> Any:
        constants |= {f"{y}.values": product.values, f"{y}.scales": product.scales.astype(np.float32).ravel()}
        sizes = {"K": product.depth, "N": product.outputs, "block_size": 32, "bits": product.bits, "accuracy_level": 4}
        inputs = [x, f"{y}.values", f"{y}.scales"]
        return helper.make_node("MatMulNBits", inputs, [y], domain="com.microsoft", **sizes)

    def kinds(self) -> list[str]:
        """Operators of the rewritten graph."""
        return [node.op_type for node in onnx.load(self._out, load_external_data=False).graph.node]

    def results(self) -> list[Any]:
        """y of the rewritten graph, and of the original."""
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(kernels.compiled()))
        x = np.random.default_rng(0).standard_normal((5, 1, self.WIDTH)).astype(np.float32)
        sessions = [ort.InferenceSession(path, options, ["CPUExecutionProvider"]) for path in (self._out, self.path)]
        return [session.run(["y"], {"x": x})[0] for session in sessions]


def check_the_same(block: Block) -> None:
    ours, theirs = block.results()
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max() > 0


@compiled
def test_products_take_over_norm_gate_and_sum(tmp_path: Path) -> None:
    block = Block(tmp_path)
    assert block.kinds() == ["Identity", "MatMulPacked", "MatMulPacked"]
    check_the_same(block)


def normed_twice(nodes: Nodes) -> None:
    """Something else reads the normed stream."""
    nodes["add"].input[0] = "normed"


def another_axis(nodes: Nodes) -> None:
    nodes["norm"] = helper.make_node("RMSNormalization", ["stream", "norm"], ["normed"], axis=2, epsilon=1e-8)


def halves_swapped(nodes: Nodes) -> None:
    nodes["gelu"].input[0], nodes["mul"].input[1] = "value", "gate"


def another_gelu(nodes: Nodes) -> None:
    nodes["gelu"] = helper.make_node("QuickGelu", ["gate"], ["silu"], domain="com.microsoft", alpha=1.702)


def a_bias(nodes: Nodes) -> None:
    """What is added is a constant of another shape."""
    nodes["add"].input[0] = "bias"


def added_to_itself(nodes: Nodes) -> None:
    nodes["add"].input[0] = "change"


@compiled
@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (normed_twice, "RMSNormalization"),
        (another_axis, "RMSNormalization"),
        (halves_swapped, "QuickGelu"),
        (another_gelu, "QuickGelu"),
        (a_bias, "Add"),
        (added_to_itself, "Add"),
    ],
)
def test_other_surroundings_stay(tmp_path: Path, change: Callable[[Nodes], None], stays: str) -> None:
    block = Block(tmp_path, change)
    assert stays in block.kinds() and block.kinds().count("MatMulPacked") == 2
    check_the_same(block)
