"""ONNX Runtime's options by precision, and types that numpy lacks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pplex.runtime.device import Buffer, HostDevice, host_view
from pplex.runtime.engine import Engine
from pplex.runtime.graphs import GraphSpec, StateSpec, TensorSpec
from pplex.runtime.ort import OnnxRuntimeExecutor, _options
from pplex.runtime.precision import PRECISIONS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fusion_of_quantized_nodes_is_off_for_fp8_only(precision: str) -> None:
    options = _options(precision, threads=1)
    if precision == "fp8":
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    else:  # int4 and int8 need it: a dequantized weight and its MatMul become MatMulNBits
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.disable_quant_qdq")


def test_bfloat16_state_is_bound_as_its_bits(tmp_path: Path) -> None:
    spec = GraphSpec(
        "copy", (TensorSpec("x", "float32", ("B",)),), (), (StateSpec("last", "bfloat16", ("B",), ring=False),)
    )
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["present.last"], to=TensorProto.BFLOAT16)],
        "copy",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B"]),
            helper.make_tensor_value_info("past.last", TensorProto.BFLOAT16, ["B"]),
        ],
        [helper.make_tensor_value_info("present.last", TensorProto.BFLOAT16, ["B"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "c.onnx")
    device, x = HostDevice(), np.array([1.0, -2.5], np.float32)
    engine = Engine(OnnxRuntimeExecutor(tmp_path / "c.onnx", spec, device, threads=1), device, 2, {})
    engine.bind({"x": Buffer.of(x)}, 0, 2)()
    assert (host_view(engine.state["last"]) == x.view(np.uint32) >> 16).all()
