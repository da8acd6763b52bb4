"""Parameters counted from the sizes are those of the exported modules."""

import math
from dataclasses import replace

import onnx
import pytest

from pplex.engines.onnx_file import weights_by_dtype
from pplex.export import weights
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.parameters import Parameters, parameters, weights_nbytes
from pplex.runtime.precision import FP32, GRAPH_NAMES, PRECISIONS, parse_precision


@pytest.mark.parametrize("graph", GRAPH_NAMES)
@pytest.mark.parametrize("depth_steps", [8, 16])
def test_counts_are_those_of_the_modules(tiny_bundle: Bundle, graph: str, depth_steps: int) -> None:
    for sizes in (tiny_bundle.config, RELEASED):
        config = replace(sizes, depth_steps=depth_steps)
        counted = sum(math.prod(shape) for shape in weights.shapes(graph, config).values())
        assert parameters(config)[graph].count == counted


def test_bytes_of_a_bundle(tiny_bundle: Bundle) -> None:
    """An exported file's weights, but for the constants of the traced code: less than 0.5 %."""
    for graph, nbytes in weights_nbytes(tiny_bundle.config, FP32).items():
        stored = weights_by_dtype(onnx.load(tiny_bundle.graph_path(graph), load_external_data=False))["FLOAT"]
        assert nbytes <= stored < 1.005 * nbytes


@pytest.mark.parametrize(
    "precision, nbytes",
    [
        ("fp32", 4 * 64 * 96 + 4 * 10 + 4 * 8),
        ("fp16", 2 * 64 * 96 + 2 * 10 + 4 * 8),
        ("fp8", 64 * 96 + 2 * 96 + 2 * 10 + 4 * 8),
        ("int8", 64 * 96 + 2 * 2 * 96 + 2 * 10 + 4 * 8),  # two blocks of 32 a column
        ("int4", 64 * 96 // 2 + 2 * 2 * 96 + 2 * 10 + 4 * 8),
    ],
)
def test_bytes_by_precision(precision: str, nbytes: int) -> None:
    assert Parameters(((64, 96),), plain=10, norms=8).nbytes(PRECISIONS[precision]) == nbytes


def test_the_codec_and_the_language_model_have_their_own() -> None:
    mixed = weights_nbytes(RELEASED, parse_precision("temporal=int4"))
    assert mixed["mimi_encode"] == 4 * parameters(RELEASED)["mimi_encode"].count
    assert mixed["depth"] == 4 * parameters(RELEASED)["depth"].count
    assert mixed["temporal"] < 4.5 * parameters(RELEASED)["temporal"].count * 1.2 / 8
