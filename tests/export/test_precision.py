"""Every precision of the tiny model: the files run in ONNX Runtime, build under TensorRT-RTX, and stay near float32."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from folders import TINY
from safetensors.numpy import load_file

from pplex.engines.tensorrt_rtx import build_engine
from pplex.export.build import BuildOptions, build
from pplex.export.source import Source
from pplex.export.storage import weights_nbytes
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.precision import LANGUAGE_GRAPHS, PRECISIONS, parse_precision
from pplex.validate.drift import Drift, Forced, drift, force
from pplex.validate.widen import widen_bundle

# Hidden cosine to float32, mean of the steps of golden/tiny. What is measured is well above: bench precision prints it.
FLOORS = {"fp16": 0.99999, "bf16": 0.9995, "fp8": 0.99, "int8": 0.9999, "int4": 0.98}

Build = Callable[[str], Bundle]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Build:
    """The tiny model's bundle in a precision, built once."""

    @cache
    def make(precision: str) -> Bundle:
        if precision == "fp32":
            return tiny_bundle
        out = tmp_path_factory.mktemp("precision") / "bundle"
        options = BuildOptions(precision=parse_precision(precision))
        return open_bundle(build(Source(TINY / "checkpoint", None, None), out, options))

    return make


@pytest.fixture(scope="module")
def drift_of(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drift]:
    codes = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")["codes"].T.astype(np.int64)

    @cache
    def forced(precision: str) -> Forced:
        bundle = built(precision)
        if precision == "bf16":
            copy = shutil.copytree(bundle.folder, tmp_path_factory.mktemp("wide") / "bundle")
            bundle = widen_bundle(open_bundle(copy))
        return force(bundle, codes)

    return lambda precision: drift(forced(precision), forced("fp32"))


@pytest.mark.parametrize("precision", FLOORS)
def test_hidden_state_stays_near_float32(drift_of: Callable[[str], Drift], precision: str) -> None:
    measured = drift_of(precision)
    print(precision, measured)
    assert FLOORS[precision] <= measured.hidden_cosine < 1 - 1e-9


def test_a_bundle_does_not_drift_from_itself(drift_of: Callable[[str], Drift]) -> None:
    assert drift_of("fp32") == Drift(pytest.approx(1.0), pytest.approx(1.0), 0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("sm", [86, 89, 120])
@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
def test_graph_builds_under_tensorrt_rtx(built: Build, precision: str, graph: str, sm: int) -> None:
    if precision == "fp8" and sm < 89:
        pytest.skip("sm_86 has no fp8: TensorRT-RTX refuses the graph")
    bundle = built(precision)
    engine = build_engine(bundle.graph_path(graph), bundle.specs[graph], bundle.config.temporal.capacity, sm)
    assert len(engine) > 500_000


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_weights_are_as_small_as_said(built: Build, precision: str) -> None:
    """The matrices and embeddings, scales included, and nothing kept twice."""
    bundle, expected = built(precision), weights_nbytes(built(precision).config, parse_precision(precision))
    data = sum(bundle.manifest["files"][f"{graph}.data"]["nbytes"] for graph in bundle.precision)
    small = 30_000  # tensors of a few bytes are in the graph itself
    assert expected - small <= data <= expected


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_low_precision_is_standard_onnx(built: Build, precision: str) -> None:
    for graph in LANGUAGE_GRAPHS:
        model = onnx.load(built(precision).graph_path(graph), load_external_data=False)
        matmuls = [node for node in model.graph.node if node.op_type == "MatMul"]
        produced = {node.output[0]: node.op_type for node in model.graph.node}
        assert {node.domain for node in model.graph.node} == {""}
        dequantized = [node for node in matmuls if produced.get(node.input[1]) == "DequantizeLinear"]
        heads = {"temporal": 1, "depth": 8}[graph] if precision == "fp8" else 0
        assert len(dequantized) == len(matmuls) - heads > 0
        if precision == "fp8":
            assert all(produced.get(node.input[0]) == "DequantizeLinear" for node in dequantized)


def test_the_codec_is_float16_where_asked(built: Build) -> None:
    bundle = built("mimi_encode=fp16,mimi_decode=fp16")
    assert {state.dtype for state in bundle.specs["mimi_decode"].state} == {"float16", "int64"}
    assert bundle.manifest["files"]["mimi_decode.data"]["nbytes"] < 0.8 * _codec_nbytes(built("fp32"))
    for graph in ("mimi_encode", "mimi_decode"):
        build_engine(bundle.graph_path(graph), bundle.specs[graph], bundle.config.temporal.capacity, 89)


def _codec_nbytes(bundle: Bundle) -> int:
    nbytes: int = bundle.manifest["files"]["mimi_decode.data"]["nbytes"]
    return nbytes


def test_calibration_is_kept_with_the_bundle_and_can_be_used_again(built: Build, tmp_path: Path) -> None:
    first = built("int4")
    assert first.manifest["calibration"]["recordings"] == "synthetic speech"
    options = BuildOptions(precision=parse_precision("int4"), calibration=first.folder)
    again = open_bundle(build(Source(TINY / "checkpoint", None, None), tmp_path / "bundle", options))
    assert again.manifest["files"] == first.manifest["files"]
