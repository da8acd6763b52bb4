"""The golden suite on a GPU, by every library that is installed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from folders import TINY
from gpu import gpu_device

from pplex.engines.compile import compile_engine, engine_entry
from pplex.engines.library import DEFAULT_OPTIONS, EngineOptions
from pplex.runtime.backend import Backend, gpu_loader
from pplex.runtime.bundle import Bundle
from pplex.runtime.gpus import TENSORRT, TENSORRT_RTX, Gpu, parse_gpu
from pplex.runtime.ort import has_cuda_provider
from pplex.validate.golden import check_golden

pytestmark = pytest.mark.gpu

SLOTS = 4

Target = tuple[Gpu, EngineOptions]  # the target of the engines


def onnx_runtime(sm: int) -> None:
    if not has_cuda_provider():
        pytest.skip("ONNX Runtime was not built for GPUs: pip install 'pplex-export[cuda]'")


def tensorrt_rtx(sm: int) -> Target:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'pplex-export[rtx]'")
    if not hasattr(trt.ComputeCapability, f"SM{sm}"):
        pytest.skip(f"TensorRT-RTX {trt.__version__} does not know sm_{sm}")
    return parse_gpu(f"sm_{sm}"), DEFAULT_OPTIONS


def tensorrt_rtx_for_any(sm: int) -> Target:
    return tensorrt_rtx_for("any", sm)


def tensorrt_rtx_for_sm_80(sm: int) -> Target:
    return tensorrt_rtx_for("sm_80", sm)


def tensorrt_rtx_for(compiled_for: str, sm: int) -> Target:
    """Engines of TensorRT-RTX for another GPU, which this GPU may still run."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'pplex-export[rtx]'")
    if sm < 80:
        pytest.skip(f"sm_{sm} is older than what code for {compiled_for} needs")
    return replace(parse_gpu(f"sm_{sm}"), kind=TENSORRT_RTX), EngineOptions(compiled_for=compiled_for)


def tensorrt(sm: int) -> Target:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed: pip install 'pplex-export[tensorrt]'")
    return replace(parse_gpu("local"), kind=TENSORRT), DEFAULT_OPTIONS


LIBRARIES = {
    "onnxruntime": onnx_runtime,
    "rtx": tensorrt_rtx,
    "rtx-any": tensorrt_rtx_for_any,
    "rtx-sm_80": tensorrt_rtx_for_sm_80,
    "tensorrt": tensorrt,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_golden_checks_pass_on_a_gpu(request: pytest.FixtureRequest, tmp_path: Path, library: str) -> None:
    device = gpu_device()
    target = LIBRARIES[library](device.gpu.sm)
    own = "tiny_bundle" if target is None else "engine_bundle"  # slow to build: not for a skipped test
    bundle: Bundle = request.getfixturevalue(own)
    if target is not None:
        bundle = with_engines(bundle, tmp_path, *target)
    checks = list(check_golden(bundle, TINY, Backend(device, gpu_loader(device))))
    assert len(checks) == 17 and all(check.passed for check in checks), checks


def with_engines(bundle: Bundle, folder: Path, gpu: Gpu, options: EngineOptions) -> Bundle:
    """The bundle with engines built on this machine."""
    shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
    entries = {}
    for name, spec in bundle.specs.items():
        engine = folder / f"{name}.engine"
        compile_engine(bundle.graph_path(name), spec, bundle.config.temporal.capacity, gpu, SLOTS, engine, options)
        entries[name] = engine_entry(engine, gpu, SLOTS)
    return replace(bundle, folder=folder, manifest={**bundle.manifest, "engines": entries})
