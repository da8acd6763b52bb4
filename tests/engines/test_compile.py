"""Every graph builds under TensorRT-RTX without a GPU; weights are stored once, in the width of the file."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import MLP, mutated, write_graph, write_mlp

from pplex.engines.compile import compile_engine, engine_entry
from pplex.engines.library import DEFAULT_OPTIONS, TIMING_CACHE_FILE, EngineOptions, layers_path
from pplex.engines.profiles import profiles
from pplex.runtime.bundle import CACHES_FOLDER, Bundle
from pplex.runtime.errors import BuildError
from pplex.runtime.gpus import TENSORRT, Gpu, parse_gpu
from pplex.runtime.graphs import GraphSpec, TensorSpec
from pplex.runtime.pipeline import GRAPH_NAMES

trt: Any = pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")

RTX_4090 = parse_gpu("rtx-4090")


def compile_mlp(path: Path, slots: int = 4, options: EngineOptions = DEFAULT_OPTIONS) -> Path:
    """The engine of an MLP file."""
    out = path.with_suffix(".engine")
    compile_engine(path, MLP, 1, RTX_4090, slots, out, options)
    return out


def held_nbytes(engine: Path) -> int:
    """Bytes of an engine's weights, as the library counts them."""
    return int(json.loads(layers_path(engine).read_text())["held_nbytes"])


@pytest.mark.parametrize("graph", GRAPH_NAMES)
@pytest.mark.parametrize("gpu", ["rtx-3090", "rtx-4090", "rtx-5090"])
def test_graph_builds_and_is_described(engine_bundle: Bundle, tmp_path: Path, graph: str, gpu: str) -> None:
    spec, out = engine_bundle.specs[graph], tmp_path / f"{graph}.engine"
    compile_engine(engine_bundle.graph_path(graph), spec, 96, parse_gpu(gpu), 8, out)
    assert engine_entry(out, parse_gpu(gpu), 8) == {
        "kind": "tensorrt-rtx",
        "file": f"{graph}.engine",
        "gpu": gpu,
        "sm": parse_gpu(gpu).sm,
        "slots": 8,
        "made_with": f"tensorrt-rtx {trt.__version__}",
    }
    layers = json.loads(layers_path(out).read_text())
    rings = sum(state.ring for state in spec.state)
    assert layers["layers"].get("KV_CACHE_UPDATE", {}) == ({"FLOAT": rings} if rings else {})
    assert len(layers["scratch_nbytes"]) == len(profiles(spec, 96, 8))
    assert 1_000_000 < layers["weights"]["FLOAT"] < out.stat().st_size


@pytest.mark.parametrize("weights", ["float16", "int8", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("slots", [1, 8])
def test_two_profiles_share_weights_of_the_written_width(tmp_path: Path, weights: str, slots: int) -> None:
    nbytes = write_mlp(tmp_path / "mlp.onnx", weights)
    engine = compile_mlp(tmp_path / "mlp.onnx", slots)
    assert nbytes <= held_nbytes(engine) < 1.01 * nbytes
    assert nbytes < engine.stat().st_size < nbytes + 2_000_000  # the rest is code


@pytest.mark.parametrize("weights", ["float16", "float8_e4m3fn"])
def test_a_profile_of_one_row_would_store_weights_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    """Why MIN_PROFILE_SLOTS is 2."""
    nbytes = write_mlp(tmp_path / "mlp.onnx", weights)
    monkeypatch.setattr("pplex.engines.profiles.MIN_PROFILE_SLOTS", 1)
    assert held_nbytes(compile_mlp(tmp_path / "mlp.onnx", slots=1)) > 1.9 * nbytes


def test_widened_weights_are_refused(tmp_path: Path) -> None:
    """TensorRT folds a Cast into the weight: the engine would hold float32."""
    spec = GraphSpec("lookup", (TensorSpec("token", "int64", ("B",)),), (TensorSpec("row", "float32", ("B", 2048)),))
    steps = [
        helper.make_node("Cast", ["table"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["wide", "token"], ["row"]),
    ]
    write_graph(tmp_path / "a.onnx", spec, steps, [numpy_helper.from_array(np.ones((8192, 2048), np.float16), "table")])
    with pytest.raises(BuildError, match=r"67,108,864 bytes of weights from the 33,554,432 of a.onnx"):
        compile_engine(tmp_path / "a.onnx", spec, 1, RTX_4090, 1, tmp_path / "a.engine")


def test_priming_takes_the_scratch_memory_of_two_slots(engine_bundle: Bundle, tmp_path: Path) -> None:
    def scratch(slots: int) -> int:
        out = tmp_path / f"{slots}.engine"
        compile_engine(engine_bundle.graph_path("temporal"), engine_bundle.specs["temporal"], 96, RTX_4090, slots, out)
        return int(json.loads(layers_path(out).read_text())["scratch_nbytes"][1])

    assert scratch(32) == scratch(2)


def test_tf32_is_off_unless_asked_for(tmp_path: Path) -> None:
    """TF32 is on by default in the library."""
    x, y = (TensorSpec(name, "float32", ("B", 512)) for name in "xy")
    spec, weight = GraphSpec("product", (x,), (y,)), numpy_helper.from_array(np.eye(512, dtype=np.float32), "w")
    write_graph(tmp_path / "a.onnx", spec, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])

    def engine(options: EngineOptions) -> bytes:
        compile_engine(tmp_path / "a.onnx", spec, 1, RTX_4090, 2, tmp_path / "a.engine", options)
        return (tmp_path / "a.engine").read_bytes()

    assert engine(EngineOptions()) == engine(EngineOptions()) != engine(EngineOptions(tf32=True))


def test_too_little_workspace_is_refused_with_the_message_of_the_library(tmp_path: Path) -> None:
    write_mlp(tmp_path / "mlp.onnx", "float16")
    with pytest.raises(BuildError, match=r"cannot build mlp.onnx for sm_89: .*within workspace limit"):
        compile_mlp(tmp_path / "mlp.onnx", options=EngineOptions(workspace_mb=1))
    assert not (tmp_path / "mlp.engine").exists()


def test_each_target_architecture_gives_another_engine(tmp_path: Path) -> None:
    write_mlp(tmp_path / "mlp.onnx", "float16")

    def engine(target: str | None) -> bytes:
        return compile_mlp(tmp_path / "mlp.onnx", options=EngineOptions(compiled_for=target)).read_bytes()

    assert engine(None) == engine("sm_89")
    assert len({engine("any"), engine("sm_80"), engine("sm_89")}) == 3


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    write_mlp(tmp_path / "mlp.onnx", "float16")
    hopper = replace(parse_gpu("sm_90"), kind="tensorrt-rtx")
    with pytest.raises(BuildError, match=r"cannot compile for sm_90\. .*: --compiled-for any"):
        compile_engine(tmp_path / "mlp.onnx", MLP, 1, hopper, 4, tmp_path / "mlp.engine")


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    write_mlp(tmp_path / "mlp.onnx", "float16")
    with pytest.raises(BuildError, match=r"same engine at every optimization level"):
        compile_mlp(tmp_path / "mlp.onnx", options=EngineOptions(optimization_level=5))


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    """The library ignores a failed write and reports success."""
    write_mlp(tmp_path / "mlp.onnx", "float16")
    (tmp_path / "mlp.engine").symlink_to("/dev/full")
    with pytest.raises(BuildError, match=r"cannot build mlp.onnx for sm_89: .*No space left on device"):
        compile_mlp(tmp_path / "mlp.onnx")
    assert not (tmp_path / "mlp.engine").is_symlink()


def test_a_damaged_graph_is_refused_with_the_message_of_the_parser(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def break_it(graph: onnx.GraphProto) -> None:
        graph.node[0].op_type = "NoSuchOp"

    path = mutated(tiny_bundle, tmp_path, "mimi_decode", break_it)
    with pytest.raises(BuildError, match=r"cannot parse mimi_decode.onnx: .*NoSuchOp"):
        compile_engine(path, tiny_bundle.specs["mimi_decode"], 96, RTX_4090, 8, tmp_path / "a.engine")


def test_a_precision_the_gpu_lacks_is_refused_by_the_library(tmp_path: Path) -> None:
    """The same limits as in runtime/gpus.py."""
    write_mlp(tmp_path / "mlp.onnx", "float8_e4m3fn")
    with pytest.raises(BuildError, match=r"for sm_86: .*Cannot compile for target.*fp8"):
        compile_engine(tmp_path / "mlp.onnx", MLP, 1, parse_gpu("rtx-3090"), 4, tmp_path / "mlp.engine")


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops in TensorRT-RTX:DeprecationWarning")
def test_tensorrt_takes_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT itself needs its GPU: TensorRT-RTX, which has the same API, stands in for it and for the GPU's name."""
    write_mlp(tmp_path / "mlp.onnx", "float16")
    l4 = parse_gpu("l4")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("pplex.engines.library.parse_gpu", lambda _: Gpu("local", "NVIDIA L4", 89, None, TENSORRT))
    options = EngineOptions(optimization_level=2)
    compile_engine(tmp_path / "mlp.onnx", MLP, 1, l4, 4, tmp_path / "mlp.engine", options)
    assert engine_entry(tmp_path / "mlp.engine", l4, 4)["made_with"] == f"tensorrt {trt.__version__}"
    assert (tmp_path / CACHES_FOLDER / TIMING_CACHE_FILE).stat().st_size > 0
    compile_engine(tmp_path / "mlp.onnx", MLP, 1, l4, 4, tmp_path / "again.engine", options)
    with pytest.raises(BuildError, match=r"H100 is sm_90, and this machine has NVIDIA L4 \(sm_89\)"):
        compile_engine(tmp_path / "mlp.onnx", MLP, 1, parse_gpu("h100"), 4, tmp_path / "other.engine")
