"""Every precision of the tiny model: the files run in ONNX Runtime, build under TensorRT-RTX, and stay near float32."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from folders import TINY
from onnx import numpy_helper

from pplex.cli import main
from pplex.engines.compile import compile_engine, engine_entry
from pplex.engines.onnx_file import weights_by_dtype
from pplex.export import weights
from pplex.export.awq import Folding
from pplex.export.build import BuildOptions, build
from pplex.export.calibration import CALIBRATION_FILE, Calibration, weights_mark
from pplex.export.checkpoint import open_checkpoint
from pplex.export.compensation import compensated
from pplex.export.quantize import BITS
from pplex.export.source import CheckpointSource
from pplex.export.storage import storages
from pplex.runtime import ort
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.gpus import Gpu, parse_gpu
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import PRECISIONS, parse_precision
from pplex.validate.validation import ValidateOptions, validate

# 1 - cosine of the hidden state, mean of the steps. This model deviates more than those behind the tolerances.
FURTHEST = {"fp32": 1e-10, "fp16": 1e-5, "bf16": 5e-4, "fp8": 0.02, "int8": 1e-3, "int4": 0.08}

Build = Callable[..., Bundle]


@pytest.fixture(scope="module")
def built(bundle_of: Callable[..., Bundle]) -> Build:
    """The tiny model's bundle in a precision, built once, of graphs for engines on request; read only."""
    return partial(bundle_of, TINY)


def compile_graph(bundle: Bundle, graph: str, gpu: Gpu, folder: Path) -> dict[str, Any]:
    path, capacity = bundle.graph_path(graph), bundle.config.temporal.capacity
    compile_engine(path, bundle.specs[graph], capacity, gpu, 4, folder / f"{graph}.engine")
    return engine_entry(folder / f"{graph}.engine", gpu, 4)


@pytest.mark.parametrize(
    "precision, for_engines", [*((name, False) for name in PRECISIONS), ("int8", True), ("int4", True)]
)
def test_every_precision_gets_a_report_and_every_layer_keeps_its_tolerance(
    built: Build, precision: str, for_engines: bool
) -> None:
    bundle, checkpoint = built(precision, for_engines), open_checkpoint(TINY / "checkpoint")
    report = validate(bundle, checkpoint, ValidateOptions(frames=64, sections=("graphs", "drift"))).report
    assert report.bundle["precision"] == dict(bundle.precision)
    assert ("emulated" in report.bundle) == (precision == "bf16")  # the processor cannot compute in it
    errors = {m.name: m for m in report.measures if m.name.endswith("layer_error")}
    assert len(errors) == 4 and all(m.passed for m in errors.values()), errors
    # As exact as the format allows, and not more: the shown layers are the rounded ones.
    assert (errors["graphs.depth.layer_error"].value or 0) > {"fp32": 0, "fp16": 1e-4}.get(precision, 3e-3)
    hidden = next(m.value for m in report.measures if m.name == "drift.hidden") or 0
    assert 1e-14 < hidden <= FURTHEST[precision]
    if precision == "fp32":
        assert report.passed


def test_a_build_that_fails_its_tolerances_exits_with_1_and_is_kept(tmp_path: Path) -> None:
    """The tiny model's logits are so steep that int4 changes most of its tokens."""
    out = tmp_path / "bundle"
    result = CliRunner().invoke(main, ["build", str(TINY / "checkpoint"), "--precision", "int4", "--out", str(out)])
    parity = open_bundle(out).manifest["parity"]
    assert result.exit_code == 1 and result.stdout.strip() == str(out)
    assert "NOT the same model within its tolerances" in result.stderr and "drift.audio_kl" in result.stderr
    assert parity["checked"] and not parity["passed"] and parity["measures"]["drift.audio_kl"]["value"] > 1.5
    assert [line.partition(":")[0] for line in parity["failures"]] == ["drift.hidden", "drift.audio_kl"]


# sm_86 has no fp8, and the build says so: tests/export/test_build.py.
ON_GPUS = [*((name, 89) for name in PRECISIONS if name != "fp32"), ("int4", 120)]


@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
@pytest.mark.parametrize("precision, sm", ON_GPUS)
def test_graph_builds_under_tensorrt_rtx(built: Build, tmp_path: Path, precision: str, graph: str, sm: int) -> None:
    bundle, gpu = built(precision, for_engines=True), parse_gpu(f"sm_{sm}")
    entry = compile_graph(bundle, graph, gpu, tmp_path)
    assert (entry["sm"], entry["slots"]) == (sm, 4)


@pytest.mark.parametrize(
    "precision, for_engines",
    [*((name, False) for name in (*PRECISIONS, "mimi_encode=fp16,mimi_decode=fp16")), ("int8", True), ("int4", True)],
)
def test_file_sizes_equal_the_counted_bytes(built: Build, precision: str, for_engines: bool) -> None:
    """Weights and scales only, not widened or stored twice; constants of the traced code are below 0.5 %."""
    bundle = built(precision, for_engines)
    for graph, nbytes in weights_nbytes(bundle.config, bundle.precision, for_engines).items():
        stored = sum(weights_by_dtype(onnx.load(bundle.graph_path(graph), load_external_data=False)).values())
        assert nbytes <= stored <= 1.005 * nbytes + 1000


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_low_precision_graphs_use_standard_onnx_only(built: Build, precision: str) -> None:
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


@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_graphs_for_engines_have_one_scale_per_column_of_int8(built: Build, precision: str, graph: str) -> None:
    """TensorRT-RTX cannot multiply int8 in blocks: tests/engines/test_kernels.py."""
    model = onnx.load(built(precision, for_engines=True).graph_path(graph), load_external_data=False)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {"int8": 0, "int4": 0}
    for node in (node for node in model.graph.node if node.op_type == "DequantizeLinear"):
        values, scale = (held[name] for name in node.input[:2])
        found["int8" if values.data_type == onnx.TensorProto.INT8 else "int4"] += 1
        assert len(scale.dims) == (1 if values.data_type == onnx.TensorProto.INT8 else 2)
    assert found["int8"] > 0 and (found["int4"] > 0) == (precision == "int4")


@pytest.mark.parametrize("for_engines", [False, True])
def test_only_graphs_for_onnx_runtime_have_negative_scales(built: Build, for_engines: bool) -> None:
    """TensorRT's documentation asks for positive scales."""
    model = onnx.load(built("int4", for_engines).graph_path("temporal"))
    scales = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".scale")]
    negative = [scale for scale in scales if (scale < 0).any()]
    assert all((scale != 0).all() for scale in scales)
    assert len(negative) == 0 if for_engines else len(scales) > len(negative) > 0  # the head has 8 bits


@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
@pytest.mark.parametrize("precision, for_engines", [("int4", False), ("int8", True)])
def test_files_hold_the_awq_weights(built: Build, precision: str, for_engines: bool, graph: str) -> None:
    """Norms and matrices in the file equal the checkpoint's after folding, rounded by the moments of their inputs."""
    bundle, checkpoint = built(precision, for_engines), open_checkpoint(TINY / "checkpoint")
    config, stored = bundle.config, storages(graph, bundle.config, bundle.precision, for_engines)
    calibration = Calibration.load(bundle.path(CALIBRATION_FILE), config, weights_mark(checkpoint))
    sources = weights.sources(graph, config, checkpoint)
    folds = Folding(graph, lambda name: sources[name].read(checkpoint), calibration, stored).folds(config)
    model = onnx.load(bundle.graph_path(graph))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, fold in folds.items():
        expected = fold(sources[name].read(checkpoint))
        if name not in stored:
            np.testing.assert_array_equal(held[name], expected.numpy())
            continue
        assert fold.rows is not None
        moments, signed = calibration.moments(graph, name).divided(fold.rows), precision == "int4" and not for_engines
        rounded = compensated(expected, BITS[precision], stored[name].block, moments, signed)
        np.testing.assert_array_equal(held[f"{name}.values"].astype(np.int8), rounded.values.numpy())
        np.testing.assert_array_equal(held[f"{name}.scale"], rounded.scale.numpy())


@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_onnx_runtime_never_widens_blocked_weights(built: Build, tmp_path: Path, precision: str, graph: str) -> None:
    """Products with blocks of at least 16, which the kernel supports, are fused with their weights."""
    bundle, options = built(precision), ort._options(precision, 1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort._session(bundle.graph_path(graph), precision, options, ["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    stored = storages(graph, bundle.config, bundle.precision).values()
    assert sum(node.op_type == "MatMulNBits" for node in nodes) == sum(weight.block >= 16 for weight in stored) > 0


def test_codec_can_be_built_in_fp16(built: Build, tmp_path: Path) -> None:
    bundle = built("mimi_encode=fp16,mimi_decode=fp16")
    for graph in ("mimi_encode", "mimi_decode"):
        assert {state.dtype for state in bundle.specs[graph].state} == {"float16", "int64"}
        compile_graph(bundle, graph, parse_gpu("rtx-4090"), tmp_path)


def test_bundle_keeps_its_calibration_for_later_builds(built: Build, tmp_path: Path) -> None:
    first = built("int4")
    assert first.manifest["calibration"]["recordings"] == "synthetic speech"
    options = BuildOptions(precision=parse_precision("int4"), calibration=first.folder)
    again = open_bundle(build(CheckpointSource(TINY / "checkpoint", None, None), tmp_path / "bundle", options))
    assert again.manifest["files"] == first.manifest["files"]
