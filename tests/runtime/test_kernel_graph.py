"""Graphs rewritten for our kernels: the same logits up to rounding, weights read in place, and what stays ONNX Runtime's."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from block_products import Product
from folders import TINY
from onnx import helper, numpy_helper

from pplex import kernels
from pplex.export.build import BuildOptions, build
from pplex.export.source import CheckpointSource
from pplex.runtime.backend import prepared_here
from pplex.runtime.bundle import open_bundle
from pplex.runtime.kernel_choice import AUTO, OFF, VARIABLE
from pplex.runtime.kernel_graph import pack_graph
from pplex.runtime.precision import parse_precision
from pplex.runtime.prepared import PreparedGraph
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages

compiled = pytest.mark.skipif(kernels.compiled() is None, reason="our kernels were not compiled: apt-get install g++")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 4 bits, never loaded."""
    options = BuildOptions(precision=parse_precision("int4"), calibration=None)
    return build(CheckpointSource(TINY / "checkpoint", None, None), tmp_path_factory.mktemp("int4") / "bundle", options)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda value: monkeypatch.setenv(VARIABLE, value)


def temporal(folder: Path) -> PreparedGraph:
    return prepared_here(folder, open_bundle(folder, verify=False).manifest)["temporal"]


def hidden(folder: Path) -> Any:
    """The temporal transformer's output for 3 slots in 6 steps of random codes, [6, 3, D]."""
    stages, random = Stages(open_bundle(folder), slots=3, threads=1, device="cpu"), np.random.default_rng(0)
    outputs = []
    for position in range(6):
        stages.codes[..., 0] = random.integers(0, 300, stages.codes.shape[:2])
        stages.position[:] = position
        stages.run("temporal", 3)
        outputs.append(stages.hidden.astype(np.float64))
    return np.stack(outputs)


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@compiled
def test_a_load_packs_the_weights_once_and_keeps_no_other_form(folder: Path) -> None:
    Runtime.load(folder, slots=1)
    graph = temporal(folder)
    assert graph.packed is not None and graph.is_there
    assert sorted(path.name for path in (folder / "caches").iterdir()) == sorted(path.name for path in graph.files)
    products = kinds(graph.model)
    # linear_out has blocks of 8 weights, which ONNX Runtime widens.
    assert products.count("MatMulPacked") == 10 and "MatMulNBits" not in products
    assert products.count("RingAttention") == 3 and "Attention" not in products
    made = {path: path.stat().st_mtime_ns for path in graph.files}
    Runtime.load(folder, slots=1)
    assert {path: path.stat().st_mtime_ns for path in graph.files} == made


@compiled
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_graph_computes_what_it_computes_without_the_kernels(
    precision: str, tmp_path: Path, bundle_of: Callable[..., Any], choose: Callable[[str], None]
) -> None:
    folder = Path(shutil.copytree(bundle_of(TINY, precision).folder, tmp_path / "bundle"))
    choose(OFF)
    theirs = hidden(folder)
    for value in (AUTO, "portable"):
        choose(value)
        # Sums are rounded in another order; seldom, that rounds an activation to the next of its 255 integers.
        assert np.abs(hidden(folder) - theirs).max() <= 0.02 * np.abs(theirs).max() > 0


@compiled
def test_turning_the_kernel_off_and_on_prepares_the_graph_again(folder: Path, choose: Callable[[str], None]) -> None:
    for value, packed in ((AUTO, True), (OFF, False), ("portable", True)):
        choose(value)
        Runtime.load(folder, slots=1)
        assert ("MatMulPacked" in kinds(temporal(folder).model)) == packed
        assert len(list((folder / "caches").iterdir())) == 2 + packed


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def gone(path: Path) -> None:
    path.unlink()


@compiled
@pytest.mark.parametrize("damage", [cut_short, gone])
def test_damaged_packed_weights_are_packed_again(folder: Path, damage: Callable[[Path], None]) -> None:
    Runtime.load(folder, slots=1)
    packed = temporal(folder).packed
    assert packed is not None
    before = packed.read_bytes()
    damage(packed)
    Runtime.load(folder, slots=1)
    assert packed.read_bytes() == before


@compiled
def test_rings_in_int8_stay_onnx_runtimes(tmp_path: Path, bundle_of: Callable[..., Any]) -> None:
    folder = Path(shutil.copytree(bundle_of(TINY, "int4", kv_cache="int8").folder, tmp_path / "bundle"))
    Runtime.load(folder, slots=1)
    found = kinds(temporal(folder).model)
    assert "MatMulPacked" in found and "RingAttention" not in found and found.count("GroupQueryAttention") == 3


def test_precisions_without_blocks_are_not_prepared(bundle_of: Callable[..., Any]) -> None:
    bundle = bundle_of(TINY, "fp16")
    assert not prepared_here(bundle.folder, bundle.manifest)


class Graph:
    """A graph with three MatMulNBits: one for the kernel, one with a scale beyond float16, one with blocks of 16."""

    def __init__(self, folder: Path):
        self.path, self.weights = folder / "graph.onnx", folder / "graph.data"
        self.ours = Product(64, 20, 32)
        tensors = {"w": self.ours.values, "s": self.ours.scales.astype(np.float32).ravel()}
        tensors |= {"v": self.ours.values, "t": np.full(40, 1e-9, np.float32)}
        tensors |= {"u": np.zeros((20, 4, 8), np.uint8), "r": np.ones(80, np.float32), "one": np.ones(1, np.float32)}
        nodes = [
            self._product("w", "s", "a", 32),
            self._product("v", "t", "b", 32),
            self._product("u", "r", "c", 16),
            helper.make_node("Add", ["a", "one"], ["d"]),
        ]
        shape = helper.make_tensor_value_info
        outputs = [shape(name, 1, ["B", 20]) for name in "bcd"]
        constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
        graph = helper.make_graph(nodes, "graph", [shape("x", 1, ["B", 64])], outputs, constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(model, self.path, save_as_external_data=True, location=self.weights.name, size_threshold=100)

    @staticmethod
    def _product(values: str, scales: str, y: str, block: int) -> Any:
        sizes = {"K": 64, "N": 20, "block_size": block, "bits": 4, "accuracy_level": 4}
        return helper.make_node("MatMulNBits", ["x", values, scales], [y], domain="com.microsoft", name=y, **sizes)


def test_only_products_that_the_kernel_can_compute_are_replaced(tmp_path: Path) -> None:
    graph, out = Graph(tmp_path), tmp_path / "out.onnx"
    pack_graph(graph.path, graph.weights, out, "out.data", "out.packed")
    model = onnx.load(out)  # with the files beside it
    assert [(node.op_type, node.name) for node in model.graph.node] == [
        ("MatMulPacked", "a"),
        ("MatMulNBits", "b"),
        ("MatMulNBits", "c"),
        ("Add", ""),
    ]
    assert {(one.domain, one.version) for one in model.opset_import} == {("", 21), ("com.microsoft", 1), ("pplex", 1)}
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert set(stored) == {"w.packed", "v", "t", "u", "r", "one"}
    assert np.array_equal(stored["w.packed"], graph.ours.packed()) and np.array_equal(stored["v"], graph.ours.values)
    assert (tmp_path / "out.packed").stat().st_size == graph.ours.packed().nbytes
    original = onnx.load(graph.path)
    assert model.graph.input == original.graph.input and model.graph.output == original.graph.output


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    graph = Graph(tmp_path)
    for data in (b"", b"no model", graph.path.read_bytes()[:-3]):
        graph.path.write_bytes(data)
        with pytest.raises(ValueError):
            pack_graph(graph.path, graph.weights, tmp_path / "out.onnx", "out.data", "out.packed")
