"""What TensorRT-RTX does with rings in 8 bits, and with the pairs of int8 that we give it instead (docs/engines.md).

If a newer version fails one of the first tests, its engines may take rings in 8 bits as they are.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pplex.engines.compile import compile_engine
from pplex.engines.kernels import kernels
from pplex.engines.library import DEFAULT_OPTIONS, configure, creation_flags, open_library
from pplex.engines.network import attentions
from pplex.export.graph import save, trace
from pplex.export.int8_rings import PairedRingAttention
from pplex.runtime.config import RELEASED
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.graphs import GraphSpec, StateSpec, TensorSpec
from pplex.runtime.trt_library import BuilderMessages

pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")

HEADS, DIM, ENTRIES, SLOTS = RELEASED.temporal.heads, RELEASED.temporal.head_dim, 3000, 4
TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
ZEROS = {"int8": np.zeros((), np.int8), "fp8": np.zeros((), ml_dtypes.float8_e4m3fn)}


def tensor(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], dtype: str) -> bytes:
    constants = [
        numpy_helper.from_array(np.array(0.02, np.float16), "scale"),
        numpy_helper.from_array(ZEROS[dtype], "zero"),
    ]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return bytes(made.SerializeToString())


def writing(dtype: str) -> bytes:
    """A ring that is written in place."""
    ring = (TYPES[dtype], SLOTS, HEADS, ENTRIES, DIM)
    inputs = [tensor("past", *ring), tensor("new", TensorProto.FLOAT16, SLOTS, HEADS, 1, DIM)]
    nodes = [
        helper.make_node("QuantizeLinear", ["new", "scale", "zero"], ["rounded"]),
        helper.make_node("TensorScatter", ["past", "rounded", "index"], ["present"], axis=2, mode="linear"),
    ]
    return model(nodes, [*inputs, tensor("index", TensorProto.INT64, SLOTS)], [tensor("present", *ring)], dtype)


def reading(dtype: str) -> bytes:
    """Attention of one step to rings that are not written. With fp8, the query is rounded, too."""
    ring = (TYPES[dtype], SLOTS, HEADS, ENTRIES, DIM)
    row = (TensorProto.FLOAT16, SLOTS, HEADS, 1, DIM)
    inputs = [tensor("q", *row), tensor("mask", TensorProto.BOOL, SLOTS, 1, 1, ENTRIES)]
    up = [helper.make_node("DequantizeLinear", [kv, "scale"], [f"{kv}.wide"], name=f"widen.{kv}") for kv in "kv"]
    query, down = "q", []
    if dtype == "fp8":
        query = "q.wide"
        down = [
            helper.make_node("QuantizeLinear", ["q", "scale", "zero"], ["q.8"], name="round.q"),
            helper.make_node("DequantizeLinear", ["q.8", "scale"], ["q.wide"], name="widen.q"),
        ]
    attend = helper.make_node("Attention", [query, "k.wide", "v.wide", "mask"], ["y"], name="attend")
    rings = [tensor(kv, *ring) for kv in "kv"]
    return model([*down, *up, attend], [*inputs, *rings], [tensor("y", *row)], dtype)


class Built:
    """The network of a model for a GPU, and its engine."""

    def __init__(self, gpu: str, content: bytes):
        self.gpu = parse_gpu(gpu)
        self.library = open_library(self.gpu)
        self.trt = self.library.trt
        self.messages = BuilderMessages(self.trt)
        self.builder = self.trt.Builder(self.messages.logger)
        self.network = self.builder.create_network(creation_flags(self.trt))
        parser = self.trt.OnnxParser(self.network, self.messages.logger)
        self.parsed = parser.parse(content)
        self.errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))

    def engine(self, path: Path) -> bool:
        config = self.builder.create_builder_config()
        configure(self.library, config, self.gpu, DEFAULT_OPTIONS)
        made = self.builder.build_serialized_network(self.network, config)
        if made is not None:
            path.write_bytes(bytes(made))
        return made is not None

    def round_weights(self) -> None:
        """Attention's weights after the softmax in fp8, which ONNX cannot say."""
        (attention,) = attentions(self.trt, self.network).values()
        scale = self.network.add_constant((), np.array(1 / 448, np.float16))
        attention.normalization_quantize_scale = scale.get_output(0)
        attention.normalization_quantize_to_type = self.trt.fp8


@pytest.mark.parametrize("dtype", TYPES)
def test_no_ring_in_eight_bits_is_written_in_place(dtype: str) -> None:
    built = Built("rtx-4090", writing(dtype))
    assert not built.parsed and "must have type Float, Half, or BFloat16" in built.errors


@pytest.mark.parametrize("gpu", ["rtx-3090", "rtx-4090", "rtx-5090"])
def test_a_ring_in_int8_is_written_in_16_bits_before_attention_reads_it(gpu: str, tmp_path: Path) -> None:
    built = Built(gpu, reading("int8"))
    assert built.parsed and built.engine(tmp_path / "engine"), built.errors
    alone = [kernel.nodes for kernel in kernels(tmp_path / "engine") if "attend" not in kernel.nodes]
    assert ("widen.k",) in alone and ("widen.v",) in alone


@pytest.mark.parametrize("gpu", ["rtx-4090", "rtx-5090"])
def test_one_kernel_reads_rings_in_fp8_if_the_query_and_the_weights_are_fp8_too(gpu: str, tmp_path: Path) -> None:
    built = Built(gpu, reading("fp8"))
    built.round_weights()
    assert built.parsed and built.engine(tmp_path / "engine"), built.errors
    (attention,) = (kernel for kernel in kernels(tmp_path / "engine") if "attend" in kernel.nodes)
    assert {"widen.k", "widen.v"} <= set(attention.nodes)


def test_fp8_is_not_for_architectures_before_8_9(tmp_path: Path) -> None:
    built = Built("rtx-3090", reading("fp8"))
    assert built.parsed and not built.engine(tmp_path / "engine")
    assert "fp8" in built.messages.first_error()


class Attend(nn.Module):
    """One attention over rings that hold pairs of int8, without its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = PairedRingAttention(RELEASED.temporal)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, index: Tensor, lengths: Tensor, mask: Tensor, *rings: Tensor
    ) -> tuple[Tensor, ...]:
        return self.attention.attend((q, k, v), (rings[0], rings[1]), index, mask, lengths)


def write_pairs(path: Path) -> GraphSpec:
    """The graph of `Attend` in float16, at the released width."""
    rows = [TensorSpec(name, "float16", ("B", HEADS, "T", DIM)) for name in "qkvy"]
    places = [TensorSpec(name, "int64", ("B",)) for name in ("index", "lengths")]
    mask = TensorSpec("mask", "bool", ("B", 1, "T", "C"))
    rings = tuple(StateSpec(f"{kv}.0", "float16", ("B", HEADS, "C", DIM // 2), ring=True) for kv in "kv")
    spec = GraphSpec("attention", (*rows[:3], *places, mask), (rows[3],), rings)
    names = [f"attention.{name}" for name in ("scales.k", "scales.v", "in_proj.weight", "out_proj.weight")]
    made = trace(spec, Attend)
    used = {str(value.name) for value in made.graph.inputs}
    scales = {name: ir.tensor(np.ones((HEADS, 1, DIM), np.float32), name=name) for name in names if name in used}
    save(made, spec, scales, path)
    return spec


@pytest.mark.parametrize("gpu", ["rtx-3090", "rtx-4090", "rtx-5090"])
def test_pairs_are_written_in_place_and_unpacked_by_one_kernel_for_each_ring(gpu: str, tmp_path: Path) -> None:
    spec, out = write_pairs(tmp_path / "attention.onnx"), tmp_path / "attention.engine"
    compile_engine(tmp_path / "attention.onnx", spec, ENTRIES, parse_gpu(gpu), SLOTS, out)
    found = kernels(out)
    operators = {n.name: n.op_type for n in onnx.load(tmp_path / "attention.onnx").graph.node}
    kinds = [{operators[node] for node in kernel.nodes if node in operators} for kernel in found]
    # A step of any number of slots, priming, and steps of 2 and 4 slots. Each has one fused attention.
    assert sum("_mha_" in kernel.name for kernel in found) == 4
    assert sum({"Log", "Exp", "Concat"} <= kind for kind in kinds) == 2 * 4
    grids = [kernel.grid for kernel, kind in zip(found, kinds, strict=True) if "TensorScatter" in kind]
    # With a fixed number of slots, only the new entries are written: 2 and 4 blocks for both rings.
    assert sorted(grid[0] for grid in grids if grid)[:2] == [4, 8]
