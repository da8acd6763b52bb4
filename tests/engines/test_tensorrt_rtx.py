"""Every graph of a bundle parses and builds under TensorRT-RTX, on a machine without a GPU."""

from pathlib import Path

import onnx
import pytest

from pplex.engines.tensorrt_rtx import build_engine
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import BuildError
from pplex.runtime.graphs import graph_specs
from pplex.runtime.precision import GRAPH_NAMES

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'pplex-export[rtx]'")


@pytest.mark.parametrize("graph", GRAPH_NAMES)
@pytest.mark.parametrize("sm", [89, 120])
def test_graph_builds(tiny_bundle: Bundle, graph: str, sm: int) -> None:
    spec, capacity = graph_specs(tiny_bundle.config)[graph], tiny_bundle.config.temporal.capacity
    engine = build_engine(tiny_bundle.graph_path(graph), spec, capacity, sm)
    assert len(engine) > 1_000_000  # the tiny weights are 1.3 MB and more a graph


def test_unknown_gpu_names_the_possible_ones(tiny_bundle: Bundle) -> None:
    spec = graph_specs(tiny_bundle.config)["mimi_decode"]
    with pytest.raises(BuildError, match=r"SM120.*not for sm_90"):
        build_engine(tiny_bundle.graph_path("mimi_decode"), spec, 96, sm=90)


def test_damaged_graph_is_refused_with_the_parsers_words(tiny_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle.graph_path("mimi_decode"))
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, tmp_path / "broken.onnx")
    spec = graph_specs(tiny_bundle.config)["mimi_decode"]
    with pytest.raises(BuildError, match="NoSuchOp"):
        build_engine(tmp_path / "broken.onnx", spec, 96, sm=89)
