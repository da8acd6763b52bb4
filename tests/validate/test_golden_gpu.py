"""The golden suite on a GPU, by every library that is installed."""

import shutil
from dataclasses import replace
from functools import partial
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


def on_onnx_runtime(bundle: Bundle, folder: Path, sm: int) -> Bundle:
    if not has_cuda_provider():
        pytest.skip("ONNX Runtime was not built for GPUs: pip install 'pplex-export[cuda]'")
    return bundle


def on_tensorrt_rtx(bundle: Bundle, folder: Path, sm: int) -> Bundle:
    """The bundle with engines that are built here, for this GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'pplex-export[rtx]'")
    if not hasattr(trt.ComputeCapability, f"SM{sm}"):
        pytest.skip(f"TensorRT-RTX {trt.__version__} does not know sm_{sm}")
    return with_engines(bundle, folder, parse_gpu(f"sm_{sm}"))


def on_tensorrt_rtx_for(target: str, bundle: Bundle, folder: Path, sm: int) -> Bundle:
    """The bundle with engines of TensorRT-RTX that are not compiled for this GPU, which may run them all the same."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'pplex-export[rtx]'")
    if sm < 80:
        pytest.skip(f"sm_{sm} is older than what code for {target} needs")
    gpu = replace(parse_gpu(f"sm_{sm}"), kind=TENSORRT_RTX)
    return with_engines(bundle, folder, gpu, EngineOptions(compiled_for=target))


def on_tensorrt(bundle: Bundle, folder: Path, sm: int) -> Bundle:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed: pip install 'pplex-export[tensorrt]'")
    return with_engines(bundle, folder, replace(parse_gpu("local"), kind=TENSORRT))


def with_engines(bundle: Bundle, folder: Path, gpu: Gpu, options: EngineOptions = DEFAULT_OPTIONS) -> Bundle:
    shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
    entries = {}
    for name, spec in bundle.specs.items():
        engine = folder / f"{name}.engine"
        compile_engine(bundle.graph_path(name), spec, bundle.config.temporal.capacity, gpu, SLOTS, engine, options)
        entries[name] = engine_entry(engine, gpu, SLOTS)
    return replace(bundle, folder=folder, manifest={**bundle.manifest, "engines": entries})


LIBRARIES = {
    "onnxruntime": on_onnx_runtime,
    "rtx": on_tensorrt_rtx,
    "rtx-any": partial(on_tensorrt_rtx_for, "any"),
    "rtx-sm_80": partial(on_tensorrt_rtx_for, "sm_80"),
    "tensorrt": on_tensorrt,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_golden_suite(tiny_bundle: Bundle, tmp_path: Path, library: str) -> None:
    device = gpu_device()
    bundle = LIBRARIES[library](tiny_bundle, tmp_path, device.gpu.sm)
    checks = list(check_golden(bundle, TINY, Backend(device, gpu_loader(device))))
    assert len(checks) == 14 and all(check.passed for check in checks), checks
