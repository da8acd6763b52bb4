"""Which attentions of a graph become ours, and that they compute the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from pplex import kernels
from pplex.runtime.kernel_graph import pack_graph

compiled = pytest.mark.skipif(kernels.compiled() is None, reason="our kernels were not compiled: apt-get install g++")


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


class Attentions:
    """A graph with attentions to rings: one for the kernel, and others that differ in one thing each."""

    PLAIN: ClassVar[dict[str, Any]] = {"is_causal": 1, "softcap": 0.0}

    def __init__(self, folder: Path):
        self.path, self.weights = folder / "graph.onnx", folder / "graph.data"
        rings = {"half": (10, 32), "narrow": (10, 24), "wide": (1, 32)}
        shape = helper.make_tensor_value_info
        passed = [helper.make_node("Identity", [f"past.{name}"], [f"present.{name}"]) for name in rings]
        nodes = [
            self._attention("ours", "half", **self.PLAIN),
            self._attention("not causal", "half"),
            self._attention("scaled", "half", **self.PLAIN, scale=0.5),
            self._attention("capped", "half", is_causal=1, softcap=30.0),
            self._attention("narrow", "narrow", **self.PLAIN),
            self._attention("float32", "wide", **self.PLAIN),
            helper.make_node("Attention", ["q", *["present.half"] * 2], ["short"], name="no lengths", is_causal=1),
            helper.make_node(
                "Attention",
                ["q", *["present.half"] * 2, "mask", "", "", "lengths"],
                ["masked"],
                name="masked",
                is_causal=1,
            ),
        ]
        kept = [shape(f"present.{name}", kind, ["B", 2, "C", width]) for name, (kind, width) in rings.items()]
        graph = helper.make_graph([*passed, *nodes], "graph", [], kept, [numpy_helper.from_array(np.ones(64), "one")])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10),
            self.path,
            save_as_external_data=True,
            location=self.weights.name,
            size_threshold=100,
        )

    @staticmethod
    def _attention(name: str, ring: str, **attributes: Any) -> Any:
        inputs = ["q", f"present.{ring}", f"present.{ring}", "", "", "", "lengths"]
        return helper.make_node("Attention", inputs, [f"{name}.y"], name=name, **attributes)


def test_only_attentions_that_the_kernel_can_compute_are_replaced(tmp_path: Path) -> None:
    graph, out = Attentions(tmp_path), tmp_path / "out.onnx"
    pack_graph(graph.path, graph.weights, out, "out.data", "out.packed")
    nodes = {node.name: node for node in onnx.load(out).graph.node if node.name}
    assert [name for name, node in nodes.items() if node.op_type == "RingAttention"] == ["ours"]
    assert nodes["ours"].domain == "pplex" and list(nodes["ours"].output) == ["ours.y"]
    assert list(nodes["ours"].input) == ["q", "present.half", "present.half", "lengths"]


class Steps:
    """A graph like the depth transformer's: each of three steps attends to the steps until then. `spoil` changes it."""

    HEADS, WIDTH = 2, 16

    def __init__(self, folder: Path, spoil: Callable[[list[Any]], None] = lambda nodes: None):
        self.path, self.weights = folder / "graph.onnx", folder / "graph.data"
        size, shape, node = self.HEADS * self.WIDTH, helper.make_tensor_value_info, helper.make_node
        nodes = list[Any]()
        for step in range(3):
            parts = [f"{part}{step}" for part in "qkv"]
            nodes += [node("Cast", [f"x{step}"], [f"half{step}"], to=10)]
            nodes += [node("Split", [f"half{step}"], parts, axis=-1, num_outputs=3)]
            read = parts[1:]
            if step:
                read = [f"ks{step}", f"vs{step}"]
                before = ["k0", "v0"] if step == 1 else [f"ks{step - 1}", f"vs{step - 1}"]
                nodes += [
                    node("Concat", [old, new], [name], axis=1)
                    for old, new, name in zip(before, parts[1:], read, strict=True)
                ]
            heads = {"q_num_heads": self.HEADS, "kv_num_heads": self.HEADS}
            nodes += [node("Attention", [parts[0], *read], [f"read{step}"], name=f"attention{step}", **heads)]
            nodes += [node("Cast", [f"read{step}"], [f"y{step}"], to=1)]
        spoil(nodes)
        inputs = [shape(f"x{step}", 1, ["B", 1, 3 * size]) for step in range(3)]
        outputs = [shape(f"y{step}", 1, ["B", 1, size]) for step in range(3)]
        graph = helper.make_graph(nodes, "steps", inputs, outputs, [numpy_helper.from_array(np.ones(64), "one")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
        external = {"save_as_external_data": True, "location": self.weights.name, "size_threshold": 100}
        onnx.save(model, self.path, **external)

    def rewritten(self) -> Path:
        out = self.path.with_name("out.onnx")
        pack_graph(self.path, self.weights, out, "out.data", "out.packed")
        return out


@compiled
def test_steps_of_the_depth_transformer_attend_as_before(tmp_path: Path) -> None:
    path = kernels.compiled()
    graph, random = Steps(tmp_path), np.random.default_rng(0)
    out = graph.rewritten()
    assert kinds(out) == ["StepAttention"] * 3
    inputs = {f"x{step}": random.standard_normal((3, 1, 96)).astype(np.float32) for step in range(3)}
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(path))
    ours, theirs = (
        ort.InferenceSession(one, options, providers=["CPUExecutionProvider"]).run(None, inputs)
        for one in (out, graph.path)
    )
    for y, expected in zip(ours, theirs, strict=True):
        assert np.abs(y - expected).max() <= 0.003 * np.abs(expected).max()  # theirs rounds to float16 in between


def _set(nodes: list[Any], name: str, **attributes: Any) -> None:
    (node,) = [node for node in nodes if node.name == name]
    for key, value in attributes.items():
        node.attribute.extend([helper.make_attribute(key, value)])


def swapped(nodes: list[Any]) -> None:
    (node,) = [node for node in nodes if node.name == "attention2"]
    node.input[1], node.input[2] = node.input[2], node.input[1]


def in_another_order(nodes: list[Any]) -> None:
    (node,) = [node for node in nodes if list(node.output) == ["ks2"]]
    node.input[:] = reversed(node.input)


def capped(nodes: list[Any]) -> None:
    _set(nodes, "attention2", softcap=20.0)


def causal(nodes: list[Any]) -> None:
    _set(nodes, "attention2", is_causal=1)


def read_twice(nodes: list[Any]) -> None:
    nodes.append(helper.make_node("Identity", ["read2"], ["again"]))


@pytest.mark.parametrize("spoil", [swapped, in_another_order, capped, causal, read_twice])
def test_other_attentions_to_steps_stay(tmp_path: Path, spoil: Callable[[list[Any]], None]) -> None:
    found = kinds(Steps(tmp_path, spoil).rewritten())
    assert found.count("StepAttention") == 2 and found.count("Attention") == 1
